//! The other side of a simulated connection: what it sends, and what it makes of what it is sent.

use std::collections::BTreeMap;

use bytes::BytesMut;
use vestibule::wire::h2::{Decoder, FRAME_HEADER, FrameHeader, Reason, cost, flag, kind, setting};

use crate::{
    Random,
    frames::{self, frame},
    service::pattern,
    world::Manner,
};

/// A stream as the peer sees it.
#[derive(Debug)]
pub struct Stream {
    /// What we may still send on it, and what is left of the body that we have in mind.
    credit: i64,
    pub body_left: usize,
    pub body_sent: usize,
    pub we_ended: bool,
    /// What it may send us beside the initial window.
    pub granted: i64,
    pub received: i64,
    /// Bytes of the updates of its window that the machine has sent.
    pub credited: usize,
    pub has_head: bool,
    pub they_ended: bool,
    /// Told by either side; nothing more is expected.
    pub is_reset: bool,
    length: bool,
}

impl Stream {
    /// Nothing more is to come of it, either way.
    pub const fn is_closed(&self) -> bool {
        self.is_reset || self.we_ended && self.they_ended
    }
}

/// A client.
pub struct Peer {
    manner: Manner,
    pub random: Random,
    /// Written, and not yet read by the machine.
    pub sent: Vec<u8>,
    received: BytesMut,
    decoder: Decoder,
    block: Vec<u8>,
    pub streams: BTreeMap<u32, Stream>,
    next_id: u32,
    /// What we may send on the connection, and what it may send us.
    pub credit: i64,
    pub granted: i64,
    pub received_all: i64,
    /// Bytes of the updates of the connection's window, but for the first.
    pub credited: usize,
    /// Our SETTINGS_INITIAL_WINDOW_SIZE: the values that may be in force, until SETTINGS are acknowledged.
    pub windows: Vec<i64>,
    frames_allowed: Vec<usize>,
    their_streams: usize,
    pub goaway: Option<(u32, u32)>,
    /// Something was sent that no peer may send.
    pub is_broken: bool,
    pub aborted: usize,
    pub completed: usize,
    /// Grants are withheld.
    pub is_stingy: bool,
    /// How much of what is sent may arrive by now, where it does not at once.
    pub drips: Option<usize>,
    /// The machine has opened the connection's window to its full size.
    is_open: bool,
    /// What it sends again and again.
    favourite: usize,
}

const HOST: &str = "a.example.org";

/// Kinds of frames that a peer may flood with.
const FLOODS: usize = 14;

impl Peer {
    pub fn new(manner: Manner, random: Random) -> Self {
        let mut peer = Self {
            manner,
            random,
            sent: frames::PREFACE.to_vec(),
            received: BytesMut::new(),
            decoder: Decoder::new(1 << 20),
            block: Vec::new(),
            streams: BTreeMap::new(),
            next_id: 1,
            credit: 65_535,
            granted: 65_535,
            received_all: 0,
            credited: 0,
            windows: vec![65_535; 2],
            frames_allowed: vec![16_384; 2],
            their_streams: usize::MAX,
            goaway: None,
            is_broken: false,
            aborted: 0,
            completed: 0,
            is_stingy: false,
            drips: None,
            is_open: false,
            favourite: 0,
        };
        peer.favourite = peer.random.below(FLOODS);
        if manner != Manner::Honest && peer.random.once_in(2) {
            peer.is_stingy = true;
        }
        peer
    }

    pub fn open_streams(&self) -> usize {
        self.streams.values().filter(|stream| !stream.is_closed()).count()
    }

    fn push(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.sent.extend(frame(kind, flags, stream, payload));
    }

    fn some_stream(&mut self, of: impl Fn(&Stream) -> bool) -> Option<u32> {
        let fitting: Vec<u32> = self.streams.iter().filter(|(_, stream)| of(stream)).map(|(id, _)| *id).collect();
        (!fitting.is_empty()).then(|| self.random.pick(&fitting))
    }

    /// How much of what was sent may be read by now.
    pub fn arrived(&self) -> usize {
        self.drips.map_or(self.sent.len(), |most| most.min(self.sent.len()))
    }

    /// Takes what is read.
    pub fn arrive(&mut self, bytes: usize) -> Vec<u8> {
        self.drips = self.drips.map(|most| most - bytes);
        self.sent.drain(..bytes).collect()
    }

    /// Begins to drip now and then, a byte a step, and ends it.
    pub fn drip(&mut self) {
        self.drips = match self.drips {
            Some(_) if self.random.once_in(25) => None,
            Some(most) => Some(most + 1),
            None if self.random.once_in(60) => Some(self.random.below(100)),
            None => None,
        };
    }

    /// Does something.
    pub fn act(&mut self) {
        if self.manner == Manner::Flooding && !self.random.once_in(4) {
            return self.flood();
        }
        match self.random.below(if self.manner == Manner::Honest { 12 } else { 24 }) {
            0..=2 => self.open(),
            3..=6 => self.upload(),
            7..=9 => self.grant(),
            10 => self.abort(),
            11 => self.settings(),
            12 => self.push(kind::PING, 0, 0, b"12345678"),
            13 => self.push(kind::PRIORITY, 0, 1, &[0, 0, 0, 0, 9]),
            14 => self.flood(),
            15 => {
                for _ in 0..self.random.below(60) {
                    self.open_and_abort();
                }
            }
            16 => self.trickle(),
            17 => self.is_stingy = !self.is_stingy,
            18 if self.random.once_in(20) => self.push(kind::GOAWAY, 0, 0, &[0; 8]),
            19 if self.manner == Manner::Broken => self.violate(),
            20..=22 => self.open(),
            _ => {}
        }
    }

    fn open(&mut self) {
        if self.goaway.is_some() || self.manner == Manner::Honest && self.open_streams() >= self.their_streams.min(40) {
            return;
        }
        let id = self.next_id;
        self.next_id += 2;
        let has_body = self.random.once_in(2);
        let body = if has_body { self.random.pick(&[0, 1, 500, 20_000, 400_000, 3_000_000]) } else { 0 };
        let length = has_body && self.random.once_in(3);
        let text = body.to_string();
        let method = if has_body { "POST" } else { "GET" };
        let mut fields = vec![(":method", method), (":scheme", "https"), (":path", "/"), (":authority", HOST)];
        if length {
            fields.push(("content-length", &text));
        }
        if has_body && self.random.once_in(8) {
            fields.push(("expect", "100-continue"));
        }
        if !has_body && self.random.once_in(10) {
            fields[0].1 = "CONNECT";
            fields.insert(1, (":protocol", "websocket"));
        }
        let block = frames::block(&fields);
        let is_tunnel = fields[0].1 == "CONNECT";
        let we_ended = !has_body && !is_tunnel;
        let end = if we_ended { flag::END_STREAM } else { 0 };
        let cut = self.random.below(block.len());
        if self.random.once_in(6) {
            self.push(kind::HEADERS, end, id, &block[..cut]);
            self.push(kind::CONTINUATION, flag::END_HEADERS, id, &block[cut..]);
        } else {
            self.push(kind::HEADERS, end | flag::END_HEADERS, id, &block);
        }
        let stream = Stream {
            credit: cost::STREAM_WINDOW.into(),
            body_left: body,
            body_sent: 0,
            we_ended,
            granted: 0,
            received: 0,
            credited: 0,
            has_head: false,
            they_ended: false,
            is_reset: false,
            length,
        };
        self.streams.insert(id, stream);
    }

    fn upload(&mut self) {
        let Some(id) = self.some_stream(|stream| !stream.we_ended && !stream.is_reset) else { return };
        let tiny = self.manner != Manner::Honest && self.random.once_in(3);
        let wanted = if tiny { 1 } else { self.random.pick(&[10, 1_000, 9_000, 16_384, 60_000]) };
        for _ in 0..if tiny { self.random.below(3_000) } else { 1 } {
            let padding = if self.random.once_in(9) { 1 + self.random.below(255) } else { 0 };
            let stream = self.streams.get_mut(&id).unwrap();
            let room = usize::try_from(stream.credit.min(self.credit)).unwrap_or(0).saturating_sub(padding + 1);
            let len = wanted.min(stream.body_left).min(room);
            if stream.body_left > 0 && len == 0 {
                return;
            }
            let data = pattern(stream.body_sent, len);
            (stream.body_sent, stream.body_left) = (stream.body_sent + len, stream.body_left - len);
            let ends = stream.body_left == 0 && (stream.length || self.random.once_in(2));
            stream.we_ended = ends;
            let end = if ends { flag::END_STREAM } else { 0 };
            let payload = if padding > 0 {
                [&[u8::try_from(padding).unwrap()][..], data, &vec![0; padding]].concat()
            } else {
                data.to_vec()
            };
            let weight = i64::try_from(payload.len()).unwrap();
            stream.credit -= weight;
            self.credit -= weight;
            let flags = end | if padding > 0 { flag::PADDED } else { 0 };
            self.push(kind::DATA, flags, id, &payload);
            if ends {
                return self.note_closed(id);
            }
            if len == 0 {
                // All is sent: trailers, or an empty frame, end it.
                let trailers = if self.random.once_in(2) { frames::field(b"x-trailer", b"1") } else { Vec::new() };
                self.push(kind::HEADERS, flag::END_STREAM | flag::END_HEADERS, id, &trailers);
                self.streams.get_mut(&id).unwrap().we_ended = true;
                return self.note_closed(id);
            }
        }
    }

    fn grant(&mut self) {
        if self.is_stingy && !self.random.once_in(20) {
            return;
        }
        let by: u32 =
            if self.manner == Manner::Honest { 100_000 } else { self.random.pick(&[1, 100, 20_000, 1_000_000]) };
        if self.granted - self.received_all < 1 << 24 {
            self.granted += i64::from(by);
            self.push(kind::WINDOW_UPDATE, 0, 0, &by.to_be_bytes());
        }
        if let Some(id) = self.some_stream(|stream| !stream.they_ended && !stream.is_reset && stream.granted < 1 << 24)
        {
            self.streams.get_mut(&id).unwrap().granted += i64::from(by);
            self.push(kind::WINDOW_UPDATE, 0, id, &by.to_be_bytes());
        }
    }

    fn abort(&mut self) {
        if self.manner == Manner::Honest && !self.random.once_in(10) {
            return;
        }
        self.reset_some();
    }

    fn reset_some(&mut self) {
        let Some(id) = self.some_stream(|stream| !stream.is_closed()) else { return };
        self.push(kind::RST_STREAM, 0, id, &8_u32.to_be_bytes());
        self.streams.get_mut(&id).unwrap().is_reset = true;
        self.aborted += 1;
    }

    fn settings(&mut self) {
        let window: u32 = match self.manner {
            Manner::Honest => 65_535 + u32::try_from(self.random.below(100_000)).unwrap(),
            _ => self.random.pick(&[0, 1, 65_535, 1 << 20]),
        };
        let frame = self.random.pick(&[16_384_u32, 32_768, 1 << 20]);
        let table = self.random.pick(&[0_u32, 100, 4_096]);
        let entries = [
            (setting::INITIAL_WINDOW_SIZE, window),
            (setting::MAX_FRAME_SIZE, frame),
            (setting::HEADER_TABLE_SIZE, table),
        ];
        let times = if self.manner != Manner::Honest && self.random.once_in(10) { 200 } else { 1 };
        let payload = entries.map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).concat();
        self.push(kind::SETTINGS, 0, 0, &payload.repeat(times));
        self.windows.push(window.into());
        self.frames_allowed.push(frame as usize);
    }

    /// Goes on with what has begun, and begins nothing.
    pub fn finish_something(&mut self) {
        self.upload();
        self.grant();
    }

    /// Many of one frame: of the favourite of a peer that has one, else of any.
    fn flood(&mut self) {
        let which = if self.manner == Manner::Flooding { self.favourite } else { self.random.below(FLOODS) };
        let count = 1 + self.random.below(400);
        let uploading = self.some_stream(|stream| !stream.we_ended && !stream.is_reset);
        let closed = self.some_stream(Stream::is_closed);
        let update = 1_u32.to_be_bytes();
        let one = match (which, uploading, closed) {
            (0, ..) => frame(kind::PING, 0, 0, b"abcdefgh"),
            (1, ..) => frame(kind::PING, flag::ACK, 0, b"abcdefgh"),
            (2, ..) => frame(0x42, 0, 0, b"unknown"),
            (3, ..) => frame(kind::SETTINGS, flag::ACK, 0, b""),
            (4, ..) => frame(kind::PRIORITY, 0, 3, &[0, 0, 0, 1, 1]),
            (5, Some(id), _) => frame(kind::DATA, 0, id, b""),
            (6, Some(id), _) if self.credit.min(self.streams[&id].credit) > 5 * 400 => {
                let weight = 5 * i64::try_from(count).unwrap();
                self.streams.get_mut(&id).unwrap().credit -= weight;
                self.credit -= weight;
                frame(kind::DATA, flag::PADDED, id, &[4, 0, 0, 0, 0])
            }
            (7, _, Some(id)) => frame(kind::WINDOW_UPDATE, 0, id, &update),
            (8, _, Some(id)) => frame(kind::RST_STREAM, 0, id, &[0, 0, 0, 8]),
            (9, ..) => return (0..count / 20).for_each(|_| self.settings()),
            (10, ..) => return (0..count / 10).for_each(|_| self.open_and_abort()),
            // Requests that have begun meanwhile.
            (11, ..) if self.open_streams() < 20 => return (0..20).for_each(|_| self.open()),
            (11, ..) => return (0..20).for_each(|_| self.reset_some()),
            (12, ..) => {
                self.granted += i64::try_from(count).unwrap();
                frame(kind::WINDOW_UPDATE, 0, 0, &update)
            }
            _ => return self.open_in_pieces(count),
        };
        self.sent.extend(one.repeat(count));
    }

    fn open_and_abort(&mut self) {
        self.open();
        self.reset_some();
    }

    /// A head in many frames.
    fn open_in_pieces(&mut self, count: usize) {
        let before = self.sent.len();
        self.open();
        let mut frames = self.sent.split_off(before);
        let is_whole = frames.get(4).is_some_and(|flags| flags & flag::END_HEADERS != 0);
        if is_whole {
            frames[4] &= !flag::END_HEADERS;
            let id = self.next_id - 2;
            frames.extend(frame(kind::CONTINUATION, 0, id, b"").repeat(count));
            frames.extend(frame(kind::CONTINUATION, flag::END_HEADERS, id, b""));
        }
        self.sent.extend(frames);
    }

    /// Sends what is left of a stream byte by byte.
    fn trickle(&mut self) {
        let Some(id) = self.some_stream(|stream| !stream.we_ended && !stream.is_reset && stream.body_left > 1) else {
            return;
        };
        let stream = self.streams.get_mut(&id).unwrap();
        if stream.credit.min(self.credit) < 1 {
            return;
        }
        let data = pattern(stream.body_sent, 1);
        (stream.body_sent, stream.body_left) = (stream.body_sent + 1, stream.body_left - 1);
        stream.credit -= 1;
        self.credit -= 1;
        self.push(kind::DATA, 0, id, data);
    }

    fn violate(&mut self) {
        if !self.random.once_in(10) {
            return;
        }
        self.is_broken = true;
        let kind = u8::try_from(self.random.below(11)).unwrap();
        let flags = u8::try_from(self.random.below(64)).unwrap();
        let stream = u32::try_from(self.random.below(9)).unwrap();
        let len = self.random.below(40);
        let payload: Vec<u8> = (0..len).map(|_| self.random.next().to_le_bytes()[0]).collect();
        self.push(kind, flags, stream, &payload);
    }

    /// Takes bytes of the machine.
    pub fn receive(&mut self, bytes: &[u8]) {
        self.received.extend_from_slice(bytes);
        while let Some(header) = FrameHeader::parse_first(&self.received) {
            if self.received.len() < FRAME_HEADER + header.len {
                return;
            }
            let payload = self.received.split_to(FRAME_HEADER + header.len).split_off(FRAME_HEADER);
            assert!(
                self.is_broken || header.len <= *self.frames_allowed.iter().max().unwrap(),
                "a frame of {} bytes",
                header.len
            );
            self.take(header, &payload);
        }
    }

    fn take(&mut self, header: FrameHeader, payload: &[u8]) {
        let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        match header.kind {
            kind::SETTINGS if header.has(flag::ACK) => self.settings_acknowledged(),
            kind::SETTINGS => {
                for entry in payload.chunks(6) {
                    let value = u32::from_be_bytes(entry[2..].try_into().unwrap());
                    if u16::from_be_bytes([entry[0], entry[1]]) == setting::MAX_CONCURRENT_STREAMS {
                        self.their_streams = value as usize;
                    }
                }
                self.push(kind::SETTINGS, flag::ACK, 0, b"");
            }
            kind::PING if !header.has(flag::ACK) => self.push(kind::PING, flag::ACK, 0, payload),
            kind::WINDOW_UPDATE if header.stream == 0 => {
                self.credit += i64::from(number(0));
                assert!(self.credit <= cost::CONNECTION_WINDOW.into(), "more credit than a connection has");
                // The first one opens the window.
                self.credited += if self.is_open { number(0) as usize } else { 0 };
                self.is_open = true;
            }
            kind::WINDOW_UPDATE => {
                if let Some(stream) = self.streams.get_mut(&header.stream) {
                    stream.credit += i64::from(number(0));
                    stream.credited += number(0) as usize;
                    assert!(stream.credit <= cost::STREAM_WINDOW.into(), "more credit than a stream has");
                }
            }
            kind::GOAWAY => self.goaway = Some((number(0), number(4))),
            kind::RST_STREAM => {
                if let Some(stream) = self.streams.get_mut(&header.stream) {
                    stream.is_reset = true;
                    if self.manner == Manner::Honest {
                        let reason = Reason(number(0));
                        assert!(
                            [Reason::NO_ERROR, Reason::INTERNAL_ERROR, Reason::CANCEL].contains(&reason),
                            "an honest stream is reset for {reason:?}"
                        );
                    }
                }
            }
            kind::HEADERS | kind::CONTINUATION => self.take_block(header, payload),
            kind::DATA => self.take_data(header, payload),
            _ => {}
        }
    }

    fn settings_acknowledged(&mut self) {
        if self.is_broken {
            return;
        }
        assert!(self.windows.len() > 1, "SETTINGS are acknowledged that were not sent");
        self.windows.remove(0);
        self.frames_allowed.remove(0);
    }

    fn take_block(&mut self, header: FrameHeader, payload: &[u8]) {
        self.block.extend_from_slice(payload);
        let ends = header.kind == kind::HEADERS && header.has(flag::END_STREAM);
        if header.has(flag::END_HEADERS) {
            self.decoder.decode(&std::mem::take(&mut self.block)).expect("fields that can be read");
        }
        let Some(stream) = self.streams.get_mut(&header.stream) else {
            assert!(self.is_broken, "an answer to nothing");
            return;
        };
        stream.has_head = true;
        if ends {
            stream.they_ended = true;
            self.note_closed(header.stream);
        }
    }

    fn take_data(&mut self, header: FrameHeader, payload: &[u8]) {
        let len = i64::try_from(payload.len()).unwrap();
        self.received_all += len;
        assert!(self.received_all <= self.granted, "more than the connection's window");
        let Some(stream) = self.streams.get_mut(&header.stream) else {
            assert!(self.is_broken, "an answer to nothing");
            return;
        };
        assert!(stream.has_head && !stream.they_ended, "DATA out of place");
        assert_eq!(payload, pattern(usize::try_from(stream.received).unwrap(), payload.len()), "other bytes");
        stream.received += len;
        if header.has(flag::END_STREAM) {
            stream.they_ended = true;
            self.note_closed(header.stream);
        }
    }

    fn note_closed(&mut self, id: u32) {
        self.completed += usize::from(self.streams[&id].is_closed());
    }
}
