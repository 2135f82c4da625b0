//! The encoders: in one go where the whole body is here, else bit by bit, and then never keeping what has arrived.

use std::{
    cell::RefCell,
    collections::VecDeque,
    future::Future,
    io::{self, Write},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::Bytes;
use flate2::write::GzEncoder;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::{
    sync::OwnedSemaphorePermit,
    time::{Sleep, sleep},
};

use crate::{
    config::plan::Encoding,
    message::{Body, BodyError},
};

/// zstd 1 is smaller and three times cheaper than any gzip on the JSON of a /sync (72 µs for 64 KiB, 13.9 KB).
const ZSTD_LEVEL: i32 = 1;

/// brotli 4 is the last level before its cost multiplies.
const BROTLI_LEVEL: u32 = 4;

/// zlib-rs is poor at 1 (21 KB where 3 makes 15); libdeflate's 1 is as dense as zlib's 3, at a third of its cost.
const GZIP_LEVEL: u32 = 3;
const LIBDEFLATE_LEVEL: i32 = 1;

/// Windows of 256 KiB: well under the 8 MiB that a client must take (RFC 9659), and bounded memory for each encoder.
const WINDOW_LOG: u32 = 18;

/// Output is passed on in pieces of about this size while input keeps coming.
const PIECE: usize = 16 * 1024;

/// How much is encoded in one go: about what takes a millisecond, measured in a release build (zstd 1: 0.6 ms, libdeflate 1:
/// 0.7 ms, zlib 3 bit by bit: 0.8 ms, brotli 4: 0.9 ms). The thread has other connections, which wait meanwhile.
///
/// A body that is not longer is encoded as a whole where all of it is here, which is three times cheaper than bit by bit
/// and denser. Together with [`super::MAX_OPEN`] it bounds the memory of all that is gathered.
pub const fn max_turn(encoding: Encoding) -> usize {
    match encoding {
        Encoding::Zstd | Encoding::Gzip => 512 * 1024,
        Encoding::Brotli => 32 * 1024,
    }
}

/// The same for bodies that are encoded bit by bit.
const fn max_streaming_turn(encoding: Encoding) -> usize {
    match encoding {
        Encoding::Gzip => 192 * 1024,
        Encoding::Zstd | Encoding::Brotli => max_turn(encoding),
    }
}

/// How long the rest of a body of known length is waited for before what has come is passed on: a tenth of the 50 ms that
/// we promise. In one go the JSON of a /sync costs 88 µs of gzip, bit by bit 258 (64 KiB).
const GATHER: Duration = Duration::from_millis(5);

thread_local! {
    static ZSTD: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
    static DEFLATE: RefCell<Option<libdeflater::Compressor>> = const { RefCell::new(None) };
    /// Where one go writes: as large as its largest input so far, so that an answer keeps only what it needs.
    static OUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Encodes a body that is all here. The contexts of zstd and libdeflate are kept per thread, which saves a tenth.
#[must_use]
pub fn whole(encoding: Encoding, body: &[u8]) -> Bytes {
    if encoding == Encoding::Brotli {
        let mut encoder = Encoder::new(encoding);
        encoder.write(body);
        encoder.finish();
        return encoder.take();
    }
    OUT.with_borrow_mut(|out| {
        let len = match encoding {
            Encoding::Zstd => ZSTD.with_borrow_mut(|kept| zstd(kept, body, out)),
            _ => DEFLATE.with_borrow_mut(|kept| gzip(kept, body, out)),
        };
        Bytes::copy_from_slice(&out[..len])
    })
}

fn zstd(kept: &mut Option<zstd::bulk::Compressor<'static>>, body: &[u8], out: &mut Vec<u8>) -> usize {
    let new = || zstd::bulk::Compressor::new(ZSTD_LEVEL).expect("the level is one of zstd's");
    grow(out, zstd::zstd_safe::compress_bound(body.len()));
    kept.get_or_insert_with(new).compress_to_buffer(body, &mut out[..]).expect("the output has the size of the bound")
}

fn gzip(kept: &mut Option<libdeflater::Compressor>, body: &[u8], out: &mut Vec<u8>) -> usize {
    let level = libdeflater::CompressionLvl::new(LIBDEFLATE_LEVEL).expect("1 is a level");
    let compressor = kept.get_or_insert_with(|| libdeflater::Compressor::new(level));
    grow(out, compressor.gzip_compress_bound(body.len()));
    compressor.gzip_compress(body, out).expect("the output has the size of the bound")
}

fn grow(out: &mut Vec<u8>, len: usize) {
    if out.len() < len {
        out.resize(len, 0);
    }
}

/// A body that is encoded as it comes: in one go where all of it is here before its source lets us wait, else bit by bit.
pub struct Encoded {
    inner: Body,
    encoding: Encoding,
    stage: Stage,
    /// What waits to be encoded.
    input: VecDeque<Bytes>,
    turn: Turn,
    trailers: Option<HeaderMap>,
    saved: Arc<AtomicU64>,
    /// What went in less what came out, as far as `saved` does not know it yet.
    gain: i64,
    _permit: OwnedSemaphorePermit,
}

enum Stage {
    /// Nothing is encoded yet: a long poll waits without an encoder, and a body that comes fast never gets one.
    Gathering(BufferedBody),
    /// Encoding bit by bit.
    Streaming {
        encoder: Box<Encoder>,
        /// Whether something went in that has not come out.
        holds_back: bool,
    },
    /// The encoding is finished; what is left to say is in here.
    Ended(Bytes),
}

/// What has been encoded without a pause, and the pause that is due.
#[derive(Default)]
struct Turn {
    spent: usize,
    pause: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Turn {
    /// Counts bytes that have been encoded; the others of the thread are next once there are enough.
    fn spend(&mut self, bytes: usize, most: usize) {
        self.spent += bytes;
        if self.spent >= most {
            self.spent = 0;
            self.pause = Some(Box::pin(tokio::task::yield_now()));
        }
    }

    /// Ready when the turn is ours.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        Poll::Ready(())
    }
}

/// What has arrived of a body whose end may be near.
#[derive(Default)]
struct BufferedBody {
    bytes: Vec<u8>,
    /// Runs from the first wait for the rest of a body whose length is known.
    timer: Option<Pin<Box<Sleep>>>,
}

impl BufferedBody {
    /// Whether the source, which has nothing now, may be waited for: only for bodies that will be here in a moment.
    fn may_wait(&mut self, cx: &mut Context<'_>, left: Option<u64>, most: usize) -> bool {
        let room = (most - self.bytes.len()) as u64;
        if left.is_none_or(|left| left > room) {
            return false;
        }
        let timer = self.timer.get_or_insert_with(|| Box::pin(sleep(GATHER)));
        timer.as_mut().poll(cx).is_pending()
    }
}

impl Encoded {
    /// Encodes a body.
    pub fn new(inner: Body, encoding: Encoding, permit: OwnedSemaphorePermit, saved: Arc<AtomicU64>) -> Self {
        let stage = Stage::Gathering(BufferedBody::default());
        Self {
            inner,
            encoding,
            stage,
            input: VecDeque::new(),
            turn: Turn::default(),
            trailers: None,
            saved,
            gain: 0,
            _permit: permit,
        }
    }

    /// Takes in a piece of the body.
    fn push(&mut self, data: Bytes) {
        self.gain += data.len() as i64;
        let most = max_turn(self.encoding);
        if let Stage::Gathering(gathered) = &mut self.stage {
            if gathered.bytes.len() + data.len() <= most {
                if gathered.bytes.is_empty() {
                    let more = self.inner.size_hint().exact().map_or(0, |left| left.min(most as u64));
                    gathered.bytes.reserve_exact(data.len() + usize::try_from(more).unwrap_or(0));
                }
                gathered.bytes.extend_from_slice(&data);
                return;
            }
            self.stream();
        }
        self.input.push_back(data);
    }

    /// From here on the body is encoded bit by bit.
    fn stream(&mut self) {
        if let Stage::Gathering(gathered) = &mut self.stage {
            self.input.push_back(std::mem::take(&mut gathered.bytes).into());
            self.stage = Stage::Streaming { encoder: Box::new(Encoder::new(self.encoding)), holds_back: false };
        }
    }

    /// Encodes no more of what waits than one turn may; what comes out, once there is enough.
    fn encode(&mut self) -> Option<Bytes> {
        let most = max_streaming_turn(self.encoding);
        let Stage::Streaming { encoder, holds_back } = &mut self.stage else { return None };
        let first = self.input.front_mut()?;
        let now = first.split_to(first.len().min(most - self.turn.spent));
        if first.is_empty() {
            self.input.pop_front();
        }
        encoder.write(&now);
        *holds_back = true;
        self.turn.spend(now.len(), most);
        if self.encoding == Encoding::Brotli && self.turn.pause.is_some() {
            // Left to itself it gathers 64 KiB and encodes them in one go.
            encoder.flush();
            *holds_back = false;
        }
        encoder.piece(PIECE)
    }

    /// The source waits. Whether what has been gathered is to be encoded now instead of waiting for the rest.
    fn stops_gathering(&mut self, cx: &mut Context<'_>) -> bool {
        let (left, most) = (self.inner.size_hint().exact(), max_turn(self.encoding));
        let Stage::Gathering(gathered) = &mut self.stage else { return false };
        if gathered.bytes.is_empty() || gathered.may_wait(cx, left, most) {
            return false;
        }
        self.stream();
        true
    }

    /// The source waits, so the reader must not: what comes out when everything has to.
    fn flush(&mut self) -> Option<Bytes> {
        let Stage::Streaming { encoder, holds_back } = &mut self.stage else { return None };
        if std::mem::take(holds_back) {
            encoder.flush();
        }
        encoder.piece(1)
    }

    /// The body has ended.
    fn finish(&mut self) {
        let rest = match &mut self.stage {
            Stage::Gathering(gathered) => {
                self.turn.spend(gathered.bytes.len(), max_turn(self.encoding));
                whole(self.encoding, &gathered.bytes)
            }
            Stage::Streaming { encoder, .. } => {
                encoder.finish();
                encoder.take()
            }
            Stage::Ended(_) => return,
        };
        self.stage = Stage::Ended(rest);
    }

    /// A piece on its way out.
    fn out(&mut self, piece: Bytes) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.gain -= piece.len() as i64;
        if !matches!(self.stage, Stage::Streaming { holds_back: true, .. }) {
            self.settle();
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    /// Tells what was saved. Only where the encoder holds nothing back: what is still inside it is not saved yet, and a
    /// counter never goes down.
    fn settle(&mut self) {
        if let Ok(gain @ 1..) = u64::try_from(self.gain) {
            self.saved.fetch_add(gain, Ordering::Relaxed);
            self.gain = 0;
        }
    }
}

impl HttpBody for Encoded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        while !matches!(this.stage, Stage::Ended(_)) {
            ready!(this.turn.poll(cx));
            if !this.input.is_empty() {
                match this.encode() {
                    Some(piece) => return this.out(piece),
                    None => continue,
                }
            }
            let piece = match Pin::new(&mut this.inner).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => {
                    match frame.into_data() {
                        Ok(data) => this.push(data),
                        Err(frame) => this.trailers = frame.into_trailers().ok(),
                    }
                    None
                }
                // Cut short: what is missing must be missed, so the coding is not finished.
                Poll::Ready(Some(Err(error))) => {
                    this.stage = Stage::Ended(Bytes::new());
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(None) => {
                    this.finish();
                    None
                }
                Poll::Pending => {
                    this.turn.spent = 0;
                    if this.stops_gathering(cx) {
                        continue;
                    }
                    match this.flush() {
                        None => return Poll::Pending,
                        piece => piece,
                    }
                }
            };
            if let Some(piece) = piece {
                return this.out(piece);
            }
        }
        if let Stage::Ended(rest) = &mut this.stage
            && !rest.is_empty()
        {
            let rest = std::mem::take(rest);
            return this.out(rest);
        }
        Poll::Ready(this.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(&self.stage, Stage::Ended(rest) if rest.is_empty()) && self.trailers.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

/// An encoder that writes into a buffer which can be taken from under it.
struct Encoder {
    writer: Writer,
    out: Sink,
}

enum Writer {
    Gzip(GzEncoder<Sink>),
    Zstd(zstd::stream::write::Encoder<'static, Sink>),
    Brotli(Box<brotli::CompressorWriter<Sink>>),
    Finished,
}

/// The lock is there for the compiler: one task has both ends.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Sink {
    fn lock(&self) -> MutexGuard<'_, Vec<u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

const NEVER_FAILS: &str = "a Vec takes everything";

impl Encoder {
    fn new(encoding: Encoding) -> Self {
        let out = Sink::default();
        let writer = match encoding {
            Encoding::Gzip => Writer::Gzip(GzEncoder::new(out.clone(), flate2::Compression::new(GZIP_LEVEL))),
            Encoding::Zstd => {
                let mut encoder =
                    zstd::stream::write::Encoder::new(out.clone(), ZSTD_LEVEL).expect("the level is one of zstd's");
                encoder.window_log(WINDOW_LOG).expect("the window is one of zstd's");
                Writer::Zstd(encoder)
            }
            Encoding::Brotli => {
                Writer::Brotli(Box::new(brotli::CompressorWriter::new(out.clone(), 4096, BROTLI_LEVEL, WINDOW_LOG)))
            }
        };
        Self { writer, out }
    }

    fn write(&mut self, bytes: &[u8]) {
        match &mut self.writer {
            Writer::Gzip(writer) => writer.write_all(bytes),
            Writer::Zstd(writer) => writer.write_all(bytes),
            Writer::Brotli(writer) => writer.write_all(bytes),
            Writer::Finished => Ok(()),
        }
        .expect(NEVER_FAILS);
    }

    fn flush(&mut self) {
        match &mut self.writer {
            Writer::Gzip(writer) => writer.flush(),
            Writer::Zstd(writer) => writer.flush(),
            Writer::Brotli(writer) => writer.flush(),
            Writer::Finished => Ok(()),
        }
        .expect(NEVER_FAILS);
    }

    fn finish(&mut self) {
        match std::mem::replace(&mut self.writer, Writer::Finished) {
            Writer::Gzip(writer) => drop(writer.finish().expect(NEVER_FAILS)),
            Writer::Zstd(writer) => drop(writer.finish().expect(NEVER_FAILS)),
            Writer::Brotli(writer) => drop(writer.into_inner()),
            Writer::Finished => {}
        }
    }

    /// What has come out, once there is enough of it.
    fn piece(&self, enough: usize) -> Option<Bytes> {
        let ready = self.out.lock().len();
        (ready >= enough.max(1)).then(|| self.take())
    }

    fn take(&self) -> Bytes {
        std::mem::take(&mut *self.out.lock()).into()
    }
}

#[cfg(test)]
pub mod tests {
    use std::io::Read as _;

    use futures_util::{FutureExt as _, StreamExt as _};
    use http_body_util::{BodyExt as _, StreamBody};
    use proptest::prelude::*;
    use tokio::sync::{Semaphore, mpsc};

    use super::*;

    pub fn decode(encoding: &str, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        match encoding {
            "gzip" => flate2::read::MultiGzDecoder::new(bytes).read_to_end(&mut out),
            "zstd" => zstd::stream::read::Decoder::new(bytes).unwrap().read_to_end(&mut out),
            _ => brotli::Decompressor::new(bytes, 4096).read_to_end(&mut out),
        }
        .unwrap();
        out
    }

    /// What can be decoded of a stream that goes on.
    fn decode_partly(encoding: Encoding, bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut buf = [0; 4096];
        let mut reader: Box<dyn io::Read + '_> = match encoding {
            Encoding::Gzip => Box::new(flate2::read::GzDecoder::new(bytes)),
            Encoding::Zstd => Box::new(zstd::stream::read::Decoder::new(bytes).unwrap()),
            Encoding::Brotli => Box::new(brotli::Decompressor::new(bytes, 64)),
        };
        while let Ok(n @ 1..) = reader.read(&mut buf) {
            out.extend_from_slice(&buf[..n]);
        }
        out
    }

    fn encoded(body: Body, encoding: Encoding) -> Encoded {
        let permit = Arc::new(Semaphore::new(1)).try_acquire_owned().unwrap();
        Encoded::new(body, encoding, permit, Arc::default())
    }

    const ALL: [Encoding; 3] = [Encoding::Zstd, Encoding::Brotli, Encoding::Gzip];

    #[tokio::test]
    async fn a_long_body_is_encoded_in_turns_of_a_millisecond() {
        let text: Vec<u8> = (0..100_000).flat_map(|n| format!("line {n}\n").into_bytes()).collect();
        for encoding in ALL {
            // All of it is here, and the reader takes it as fast as it comes.
            let mut body = encoded(Body::full(text.clone()), encoding);
            let (mut pauses, mut out) = (0, Vec::new());
            loop {
                let before = body.input.iter().map(Bytes::len).sum::<usize>();
                let polled = std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx))).await;
                let after = body.input.iter().map(Bytes::len).sum::<usize>();
                assert!(before.saturating_sub(after) <= max_streaming_turn(encoding));
                match polled {
                    Poll::Pending => {
                        pauses += 1;
                        tokio::task::yield_now().await;
                    }
                    Poll::Ready(Some(frame)) => out.extend_from_slice(&frame.unwrap().into_data().unwrap()),
                    Poll::Ready(None) => break,
                }
            }
            assert!(pauses >= text.len() / max_streaming_turn(encoding), "{encoding:?}: {pauses} pauses");
            assert!(decode(encoding.as_str(), &out) == text, "{encoding:?}");
        }
    }

    #[tokio::test]
    async fn each_line_of_a_slow_stream_comes_out_at_once() {
        for encoding in ALL {
            let (lines, source) = mpsc::unbounded_channel::<Result<Frame<Bytes>, BodyError>>();
            let stream =
                futures_util::stream::unfold(source, async |mut source| source.recv().await.map(|l| (l, source)));
            let mut body = Box::pin(encoded(Body::stream(StreamBody::new(Box::pin(stream))), encoding));
            let (mut wire, mut said) = (Vec::new(), Vec::new());
            for n in 0..20 {
                let line = format!("line {n:02} of a slow stream\n").into_bytes();
                said.extend_from_slice(&line);
                lines.send(Ok(Frame::data(line.into()))).unwrap();
                let frame = body.frame().now_or_never().flatten().expect("nothing is held back").unwrap();
                wire.extend_from_slice(&frame.into_data().unwrap());
                assert_eq!(decode_partly(encoding, &wire), said, "{encoding:?}");
                assert!(body.frame().now_or_never().is_none(), "and then it waits");
            }
            drop(lines);
            while let Some(frame) = body.frame().await {
                wire.extend_from_slice(&frame.unwrap().into_data().unwrap());
            }
            assert_eq!(decode(encoding.as_str(), &wire), said);
        }
    }

    #[tokio::test]
    async fn a_body_that_is_cut_stays_cut() {
        for encoding in ALL {
            let frames = [Ok(Frame::data(Bytes::from_static(b"half"))), Err(BodyError::Truncated)];
            let body = Body::stream(StreamBody::new(futures_util::stream::iter(frames)));
            let mut body = Box::pin(encoded(body, encoding));
            let mut last = None;
            while let Some(frame) = body.frame().await {
                last = Some(frame);
            }
            assert!(matches!(last, Some(Err(BodyError::Truncated))));
        }
    }

    /// A body that knows its length.
    struct EncodedBytes(mpsc::UnboundedReceiver<Bytes>, u64);

    impl HttpBody for EncodedBytes {
        type Data = Bytes;
        type Error = BodyError;

        fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
            let piece = std::task::ready!(self.0.poll_recv(cx));
            self.1 -= piece.as_ref().map_or(0, |piece| piece.len() as u64);
            Poll::Ready(piece.map(|piece| Ok(Frame::data(piece))))
        }

        fn size_hint(&self) -> SizeHint {
            SizeHint::with_exact(self.1)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_rest_of_a_body_is_waited_for_no_longer_than_a_moment() {
        for encoding in ALL {
            let (pieces, source) = mpsc::unbounded_channel();
            let mut body = Box::pin(encoded(Body::stream(EncodedBytes(source, 18)), encoding));
            assert!(body.frame().now_or_never().is_none(), "no byte, nothing to say");
            pieces.send(Bytes::from_static(b"part and ")).unwrap();
            assert!(body.frame().now_or_never().is_none(), "the rest may be here in a moment");
            let began = tokio::time::Instant::now();
            let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert!((GATHER..Duration::from_millis(50)).contains(&began.elapsed()), "{:?}", began.elapsed());
            assert_eq!(decode_partly(encoding, &first), b"part and ");
            pieces.send(Bytes::from_static(b"the rest.")).unwrap();
            drop(pieces);
            let mut wire = first.to_vec();
            wire.extend_from_slice(&body.collect().await.unwrap().to_bytes());
            assert_eq!(decode(encoding.as_str(), &wire), b"part and the rest.");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_comes_in_time_is_encoded_in_one_go() {
        for encoding in ALL {
            let (pieces, source) = mpsc::unbounded_channel();
            let mut body = Box::pin(encoded(Body::stream(EncodedBytes(source, 18)), encoding));
            pieces.send(Bytes::from_static(b"part and ")).unwrap();
            assert!(body.frame().now_or_never().is_none());
            pieces.send(Bytes::from_static(b"the rest.")).unwrap();
            drop(pieces);
            let all = body.frame().await.unwrap().unwrap().into_data().unwrap();
            assert_eq!(all, whole(encoding, b"part and the rest."));
            assert!(body.is_end_stream());
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn what_goes_in_comes_out(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5000), 0..20)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            for encoding in ALL {
                let frames: Vec<_> = pieces.iter().map(|piece| Ok(Frame::data(Bytes::from(piece.clone())))).collect();
                let body = encoded(Body::stream(StreamBody::new(futures_util::stream::iter(frames).boxed())), encoding);
                let bytes = runtime.block_on(body.collect()).unwrap().to_bytes();
                prop_assert_eq!(decode(encoding.as_str(), &bytes), pieces.concat());
            }
        }
    }
}
