//! What arrives on streams: the receive windows, and the memory that is held until somebody reads it.

use bytes::Bytes;
use http::StatusCode;

use super::{Connection, RecvState, SendState, Stream, Waiter, frames::Fault, stream::BodyFrame};
use crate::{
    message::Fields,
    wire::h2::{
        Reason,
        cost::{CONNECTION_WINDOW, PINNED, STREAM_WINDOW},
    },
};

/// The receive window of a connection, and the memory behind it.
#[derive(Debug)]
pub struct Ledger {
    /// What the peer may send, and what was read since it was told so.
    credit: i64,
    uncredited: u32,
    /// Bytes of memory that unread content holds.
    pub held: usize,
    /// Payloads that keep the buffer they were read into.
    pub pinned: usize,
}

impl Ledger {
    pub fn new() -> Self {
        Self { credit: CONNECTION_WINDOW.into(), uncredited: 0, held: 0, pinned: 0 }
    }

    /// Whether one more payload may keep its buffer.
    pub const fn may_pin(&self) -> bool {
        self.pinned < PINNED
    }

    /// The streams are gone with all that they held.
    pub const fn forget(&mut self) {
        (self.held, self.pinned) = (0, 0);
    }
}

impl<W: Waiter> Connection<W> {
    /// Bytes of memory that request bodies hold.
    #[must_use]
    pub const fn held(&self) -> usize {
        self.ledger.held
    }

    /// DATA. `weight` is what it counts in the windows, padding included; `pinned` is `data` in the buffer that it was
    /// read into.
    pub(super) fn arrive(
        &mut self,
        id: u32,
        data: &[u8],
        pinned: Option<Bytes>,
        weight: usize,
        ends: bool,
    ) -> Result<(), Fault> {
        let window_weight = i64::try_from(weight).unwrap_or(i64::MAX);
        self.ledger.credit -= window_weight;
        if self.ledger.credit < 0 {
            return Err(Fault::Connection(Reason::FLOW_CONTROL_ERROR));
        }
        let Some(stream) = self.streams.get_mut(&id) else {
            self.return_credit(weight);
            return if self.was_reset_by_us(id) || id > self.last_taken {
                Ok(())
            } else {
                Err(Fault::Stream(id, Reason::STREAM_CLOSED))
            };
        };
        if let Err(reason) = stream.accept(data.len(), window_weight, ends) {
            self.return_credit(weight);
            return Err(Fault::Stream(id, reason));
        }
        stream.starved = stream.starved.map(|_| self.now);
        let mut unused = weight - data.len();
        stream.uncredited += u32::try_from(unused).unwrap_or(0);
        if matches!(stream.recv, RecvState::Abandoned(_)) {
            // Its own window is not opened again, that of the others is.
            unused = weight;
        } else if let Some(pinned) = pinned {
            stream.inbox.pin(pinned, &mut self.ledger);
        } else if !data.is_empty() {
            stream.inbox.copy(data, &mut self.ledger);
        }
        self.return_credit(unused);
        if ends {
            self.end_body(id);
        } else {
            self.wake_reader(id);
        }
        Ok(())
    }

    /// Trailers, which end the stream.
    pub(super) fn arrive_trailers(&mut self, id: u32, trailers: Fields) -> Result<(), Fault> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        stream.accept(0, 0, true).map_err(|reason| Fault::Stream(id, reason))?;
        stream.trailers = Some(trailers);
        self.end_body(id);
        Ok(())
    }

    fn end_body(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        stream.ended = true;
        if matches!(stream.recv, RecvState::Abandoned(_)) {
            stream.recv = RecvState::Closed;
            return self.remove_if_done(id);
        }
        self.wake_reader(id);
    }

    fn wake_reader(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if !stream.is_begun {
            return self.release_held(id);
        }
        stream.waiter.readable();
    }

    /// Bytes that occupy no window any more. The peer is told a quarter of the window at a time.
    pub(super) fn return_credit(&mut self, bytes: usize) {
        self.ledger.uncredited = self.ledger.uncredited.saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        if self.ledger.uncredited >= CONNECTION_WINDOW / 4 && self.end.is_none() {
            let by = std::mem::take(&mut self.ledger.uncredited);
            self.ledger.credit += i64::from(by);
            self.output.window_update(0, by);
        }
    }

    /// The next frame of a request body, or `None` if the stream's waiter has to be told first. Nothing comes after
    /// `End`, `Reset`, `Lost` and `Stalled`.
    pub fn read(&mut self, id: u32) -> Option<BodyFrame> {
        let Some(stream) = self.streams.get_mut(&id) else {
            return Some(if self.end.is_some() { BodyFrame::Lost } else { BodyFrame::Reset });
        };
        if let Some(data) = stream.inbox.pop(&mut self.ledger) {
            stream.starved = None;
            let len = u32::try_from(data.len()).unwrap_or(u32::MAX);
            stream.uncredited = stream.uncredited.saturating_add(len);
            if stream.uncredited >= STREAM_WINDOW / 4 && !stream.ended {
                let by = std::mem::take(&mut stream.uncredited);
                stream.credit += i64::from(by);
                self.output.window_update(id, by);
            }
            self.return_credit(data.len());
            return Some(BodyFrame::Data(data));
        }
        if let Some(trailers) = stream.trailers.take() {
            return Some(BodyFrame::Trailers(trailers));
        }
        if stream.ended {
            stream.recv = RecvState::Closed;
            self.remove_if_done(id);
            return Some(BodyFrame::End);
        }
        if stream.is_stalled {
            return Some(BodyFrame::Stalled);
        }
        let owes_continue = std::mem::take(&mut stream.owes_continue) && stream.send == SendState::Idle;
        if stream.starved.is_none() && !stream.is_tunnel {
            stream.starved = Some(self.now);
            self.arm_stall();
        }
        // Whoever asked whether to send it waits for this (RFC 9110 section 10.1.1).
        if owes_continue {
            self.output.response(id, false, StatusCode::CONTINUE, &Fields::new());
        }
        None
    }

    /// Whether all of a request body has been read.
    #[must_use]
    pub fn is_read(&self, id: u32) -> bool {
        let unread = |stream: &Stream<W>| !stream.ended || !stream.inbox.is_empty() || stream.trailers.is_some();
        !self.streams.get(&id).is_some_and(unread)
    }

    /// Nobody reads the body of a request any more.
    pub fn abandon(&mut self, id: u32) {
        let Some(stream) = self.streams.get_mut(&id) else { return };
        if stream.recv != RecvState::Open {
            return;
        }
        stream.recv = if stream.ended { RecvState::Closed } else { RecvState::Abandoned(self.now) };
        (stream.starved, stream.trailers) = (None, None);
        let unread = stream.inbox.clear(&mut self.ledger);
        self.return_credit(unread);
        self.arm_abandoned();
        self.remove_if_done(id);
    }
}

impl<W> Stream<W> {
    /// Counts what arrives; why it may not.
    fn accept(&mut self, len: usize, weight: i64, ends: bool) -> Result<(), Reason> {
        if self.ended {
            return Err(Reason::STREAM_CLOSED);
        }
        self.credit -= weight;
        if self.credit < 0 {
            return Err(Reason::FLOW_CONTROL_ERROR);
        }
        if let Some(left) = &mut self.length_left {
            *left = left.checked_sub(len as u64).ok_or(Reason::PROTOCOL_ERROR)?;
            if ends && *left > 0 {
                return Err(Reason::PROTOCOL_ERROR);
            }
        }
        Ok(())
    }
}
