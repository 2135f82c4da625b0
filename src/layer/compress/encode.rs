//! The encoders: in one go where the whole body is here, else bit by bit, and then never keeping what has arrived.

use std::{
    cell::RefCell,
    io::{self, Write},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use flate2::write::GzEncoder;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    body::{Body, BodyError},
    config::plan::Encoding,
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

thread_local! {
    static ZSTD: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
    static DEFLATE: RefCell<Option<libdeflater::Compressor>> = const { RefCell::new(None) };
}

/// Encodes a body that is all here. The contexts of zstd and libdeflate are kept per thread, which saves a tenth.
#[must_use]
pub fn whole(encoding: Encoding, body: &[u8]) -> Bytes {
    match encoding {
        Encoding::Zstd => ZSTD.with_borrow_mut(|kept| {
            let compressor = kept
                .get_or_insert_with(|| zstd::bulk::Compressor::new(ZSTD_LEVEL).expect("the level is one of zstd's"));
            compressor.compress(body).expect("the output is as large as zstd asks for").into()
        }),
        Encoding::Gzip => DEFLATE.with_borrow_mut(|kept| {
            let compressor = kept.get_or_insert_with(|| {
                libdeflater::Compressor::new(libdeflater::CompressionLvl::new(LIBDEFLATE_LEVEL).expect("1 is a level"))
            });
            let mut out = vec![0; compressor.gzip_compress_bound(body.len())];
            let len = compressor.gzip_compress(body, &mut out).expect("the output has the size of the bound");
            out.truncate(len);
            out.into()
        }),
        Encoding::Brotli => {
            let mut encoder = Encoder::new(encoding);
            encoder.write(body);
            encoder.finish();
            encoder.take()
        }
    }
}

/// A body that is encoded as it comes.
pub struct Encoded {
    inner: Body,
    encoding: Encoding,
    /// Made when the first byte arrives: a long poll waits without one.
    encoder: Option<Encoder>,
    trailers: Option<HeaderMap>,
    done: bool,
    /// Whether something went in that has not come out.
    holds_back: bool,
    saved: Arc<AtomicU64>,
    _permit: OwnedSemaphorePermit,
}

impl Encoded {
    /// Encodes a body.
    pub const fn new(inner: Body, encoding: Encoding, permit: OwnedSemaphorePermit, saved: Arc<AtomicU64>) -> Self {
        Self { inner, encoding, encoder: None, trailers: None, done: false, holds_back: false, saved, _permit: permit }
    }

    fn encoder(&mut self) -> &mut Encoder {
        self.encoder.get_or_insert_with(|| Encoder::new(self.encoding))
    }

    /// What has come out, once there is enough of it.
    fn piece(&mut self, enough: usize) -> Option<Bytes> {
        let encoder = self.encoder.as_mut().filter(|encoder| encoder.ready() >= enough.max(1))?;
        let piece = encoder.take();
        // Counted up with every byte in and down with every byte out; the sum over all bodies is what was saved.
        self.saved.fetch_sub(piece.len() as u64, Ordering::Relaxed);
        Some(piece)
    }
}

impl HttpBody for Encoded {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let this = &mut *self;
        while !this.done {
            match Pin::new(&mut this.inner).poll_frame(cx) {
                Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => {
                        this.saved.fetch_add(data.len() as u64, Ordering::Relaxed);
                        this.encoder().write(&data);
                        this.holds_back = true;
                        if let Some(piece) = this.piece(PIECE) {
                            return Poll::Ready(Some(Ok(Frame::data(piece))));
                        }
                    }
                    Err(frame) => this.trailers = frame.into_trailers().ok(),
                },
                // Cut short: what is missing must be missed, so the coding is not finished.
                Poll::Ready(Some(Err(error))) => {
                    this.done = true;
                    this.encoder = None;
                    return Poll::Ready(Some(Err(error)));
                }
                Poll::Ready(None) => {
                    this.done = true;
                    this.encoder().finish();
                }
                Poll::Pending if std::mem::take(&mut this.holds_back) => {
                    // The source waits, so the reader must not.
                    this.encoder().flush();
                    match this.piece(1) {
                        Some(piece) => return Poll::Ready(Some(Ok(Frame::data(piece)))),
                        None => return Poll::Pending,
                    }
                }
                Poll::Pending => return Poll::Pending,
            }
        }
        if let Some(piece) = this.piece(1) {
            return Poll::Ready(Some(Ok(Frame::data(piece))));
        }
        this.encoder = None;
        Poll::Ready(this.trailers.take().map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.done && self.encoder.is_none() && self.trailers.is_none()
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

    fn ready(&self) -> usize {
        self.out.lock().len()
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

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn what_goes_in_comes_out(pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..5000), 0..20)) {
            for encoding in ALL {
                let frames: Vec<_> = pieces.iter().map(|piece| Ok(Frame::data(Bytes::from(piece.clone())))).collect();
                let body = encoded(Body::stream(StreamBody::new(futures_util::stream::iter(frames).boxed())), encoding);
                let bytes = body.collect().now_or_never().unwrap().unwrap().to_bytes();
                prop_assert_eq!(decode(encoding.as_str(), &bytes), pieces.concat());
            }
        }
    }
}
