//! The state machine of HTTP/2 in any state: what the peer sends, what the socket takes, what the service does and how
//! time passes are all the input's to say. Never a panic, every bound of the cost model holds, no deadline that has
//! passed stands still, and nothing survives the connection.
#![no_main]

use std::time::{Duration, Instant};

use bytes::BytesMut;
use http::{StatusCode, header};
use libfuzzer_sys::fuzz_target;
use vestibule::{
    message::{Fields, Value},
    wire::h2::{
        Connection, Decoder, FRAME_HEADER, FrameHeader, PREFACE, Reason,
        connection::{BodyFrame, Waiter},
        cost::{self, Limits},
        flag, kind,
    },
};

const LIMITS: Limits = Limits {
    streams: 5,
    list: 4_096,
    header: Some(Duration::from_secs(15)),
    keep_alive: Some(Duration::from_secs(300)),
    body_stall: Some(Duration::from_secs(60)),
};

/// Output above which the machine adds nothing but what single frames need: acknowledgements, resets, heads.
const OUTPUT: usize = 2 * cost::HIGH_WATER;

#[derive(Default)]
struct Nobody;

impl Waiter for Nobody {
    fn readable(&mut self) {}
    fn writable(&mut self) {}
}

struct World<'a> {
    script: &'a [u8],
    machine: Connection<Nobody>,
    now: Instant,
    input: BytesMut,
    output: Vec<u8>,
    /// Requests that have begun.
    begun: Vec<u32>,
}

impl World<'_> {
    fn byte(&mut self) -> usize {
        let Some((first, rest)) = self.script.split_first() else { return 0 };
        self.script = rest;
        usize::from(*first)
    }

    fn bytes(&mut self, len: usize) -> Vec<u8> {
        let (bytes, rest) = self.script.split_at(len.min(self.script.len()));
        self.script = rest;
        bytes.to_vec()
    }

    /// Does one thing.
    fn step(&mut self) {
        match self.byte() % 10 {
            // Bytes as they are, a frame around some, and DATA of any size.
            0 => {
                let len = self.byte();
                let bytes = self.bytes(len);
                self.input.extend_from_slice(&bytes);
            }
            1..=3 => {
                let (kind, flags, stream, len) = (self.byte() % 11, self.byte(), self.byte(), self.byte());
                let payload = self.bytes(len);
                self.frame(kind, flags, stream, &payload);
            }
            4 => {
                let (stream, len, ends) = (self.byte(), self.byte() << 8, self.byte() % 2);
                self.frame(kind::DATA.into(), ends, stream, &vec![7; len]);
            }
            5 => {
                let millis = 1 << (self.byte() % 20);
                self.now += Duration::from_millis(millis);
            }
            6 => {
                let most = self.byte() << 8;
                let n = self.machine.output().len().min(most);
                self.output.extend_from_slice(&self.machine.output()[..n]);
                self.machine.written(n);
                let waits = !self.machine.output().is_empty();
                self.machine.note_socket(n > 0, waits);
            }
            7 | 8 => self.serve(),
            _ => match self.byte() {
                0..=3 => self.machine.shut_down(),
                4 | 5 => self.machine.close(),
                6 => self.machine.lose(),
                _ => {}
            },
        }
    }

    fn frame(&mut self, kind: usize, flags: usize, stream: usize, payload: &[u8]) {
        let header =
            FrameHeader { len: payload.len(), kind: kind as u8, flags: flags as u8, stream: stream as u32 % 32 };
        self.input.extend_from_slice(&header.bytes());
        self.input.extend_from_slice(payload);
    }

    /// The service does something with one of its requests.
    fn serve(&mut self) {
        let which = self.byte() % 8;
        let Some(id) = self.begun.get(which).copied() else { return };
        let wanted = 100 << (self.byte() % 10);
        let fields = [(header::SERVER, Value::from_static("x"))].into_iter().collect::<Fields>();
        let ends = self.byte() % 2 == 0;
        // Whoever serves a stream that has closed is told so.
        let _ = match self.byte() % 8 {
            0 | 1 => self.machine.send_head(id, StatusCode::OK, &fields, ends),
            2 | 3 => match self.machine.room(id, wanted) {
                Ok(Some(room)) => self.machine.send_data(id, &vec![9; room], ends),
                _ => Ok(()),
            },
            4 => self.machine.send_trailers(id, &fields),
            5 => {
                self.machine.reset(id, Reason::CANCEL);
                Ok(())
            }
            6 => {
                self.machine.abandon(id);
                Ok(())
            }
            _ => {
                // Nothing comes after the others.
                while let Some(BodyFrame::Data(_) | BodyFrame::Trailers(_)) = self.machine.read(id) {}
                Ok(())
            }
        };
    }

    /// A turn of the driver.
    fn turn(&mut self) {
        self.machine.begin_turn(self.now);
        while self.machine.can_receive() {
            let before = self.input.len();
            self.machine.receive(&mut self.input);
            while let Some(incoming) = self.machine.next_request() {
                assert!(self.machine.is_open(incoming.id), "a stale request");
                self.begun.push(incoming.id);
            }
            if self.input.len() == before {
                break;
            }
        }
        let is_late = self.machine.deadline().is_some_and(|at| at <= self.now);
        assert!(!is_late || self.machine.is_over(), "a deadline that has passed");
        assert!(self.machine.held() <= cost::held_at_most(LIMITS.streams));
        assert!(self.machine.open_streams() <= LIMITS.streams);
        assert!(self.machine.output().len() <= OUTPUT, "{} bytes of output", self.machine.output().len());
        if self.machine.end().is_some() {
            assert_eq!((self.machine.open_streams(), self.machine.held()), (0, 0), "it survives its connection");
        }
        self.begun.retain(|id| self.machine.is_open(*id));
    }
}

fuzz_target!(|script: &[u8]| {
    let now = Instant::now();
    let machine = Connection::new(LIMITS, now);
    let mut world =
        World { script, machine, now, input: BytesMut::from(&PREFACE[..]), output: Vec::new(), begun: Vec::new() };
    // SETTINGS, without which nothing else is looked at.
    world.frame(kind::SETTINGS.into(), 0, 0, &[]);
    while !world.script.is_empty() && world.machine.end().is_none() {
        world.step();
        world.turn();
    }
    world.output.extend_from_slice(world.machine.output());
    can_be_read(&world.output, world.machine.end().is_some());
    // A peer that does nothing more is not waited for, once the service has nothing to say either.
    for _ in 0..20 {
        world.now += Duration::from_secs(600);
        world.turn();
        for id in &world.begun {
            world.machine.abandon(*id);
            world.machine.reset(*id, Reason::CANCEL);
        }
        world.machine.note_socket(false, !world.machine.output().is_empty());
    }
    assert!(world.machine.end().is_some(), "a silent connection goes on for hours");
});

/// What was written are whole frames, whose fields can be read; of a lost connection, the last may be cut.
fn can_be_read(mut output: &[u8], has_ended: bool) {
    let (mut decoder, mut block) = (Decoder::new(1 << 20), Vec::new());
    while let Some(header) = FrameHeader::parse_first(output) {
        let Some(payload) = output.get(FRAME_HEADER..FRAME_HEADER + header.len) else { break };
        if matches!(header.kind, kind::HEADERS | kind::CONTINUATION) {
            block.extend_from_slice(payload);
            if header.has(flag::END_HEADERS) {
                decoder.decode(&std::mem::take(&mut block)).expect("fields that can be read");
            }
        }
        output = &output[FRAME_HEADER + header.len..];
    }
    assert!(output.is_empty() || has_ended, "half a frame");
}
