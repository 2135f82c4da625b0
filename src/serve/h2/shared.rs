//! The connection as its streams hold it: behind a lock that is never waited for, since a connection and its streams are
//! one task, and a tunnel is another on the same thread.

use std::{
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
};

use http::StatusCode;
use tokio::time::Instant;

use crate::{
    conn::{AbortReason, ClientSide},
    message::Fields,
    wire::h2::{
        Connection, Reason,
        connection::{BodyFrame, StreamClosed, Waiter},
        cost::{Limits, Turn},
    },
};

/// The tasks that wait for a stream.
#[derive(Debug, Default)]
pub struct Wakers {
    reading: Option<Waker>,
    writing: Option<Waker>,
}

impl Waiter for Wakers {
    fn readable(&mut self) {
        if let Some(waker) = self.reading.take() {
            waker.wake();
        }
    }

    fn writable(&mut self) {
        if let Some(waker) = self.writing.take() {
            waker.wake();
        }
    }
}

fn register(waker: &mut Option<Waker>, cx: &Context<'_>) {
    if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
        *waker = Some(cx.waker().clone());
    }
}

/// See the head of this file.
pub struct Shared(Mutex<State>);

struct State {
    connection: Connection<Wakers>,
    /// The task of the connection is at work: it sees what changes before its turn ends.
    in_turn: bool,
    task: Option<Waker>,
    /// The deadline that the task knows.
    deadline: Option<std::time::Instant>,
}

impl Shared {
    /// A connection that begins now.
    pub fn new(limits: Limits) -> Arc<Self> {
        let connection = Connection::new(limits, Instant::now().into_std());
        Arc::new(Self(Mutex::new(State { connection, in_turn: false, task: None, deadline: None })))
    }

    /// The connection. Outside of its turn, its task is woken for what has changed.
    pub fn lock(&self) -> Access<'_> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !state.in_turn {
            state.connection.set_time(Instant::now().into_std());
        }
        Access(state)
    }

    /// A turn of the connection's task begins, and `first` is done before its deadlines take effect.
    pub fn begin_turn(&self, first: impl FnOnce(&mut Connection<Wakers>)) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now().into_std();
        state.in_turn = true;
        state.connection.set_time(now);
        first(&mut state.connection);
        state.connection.begin_turn(now);
    }

    /// It ends; changes wake the task from now on, and so does the deadline that is returned.
    pub fn end_turn(&self, cx: &Context<'_>) -> Option<std::time::Instant> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.in_turn = false;
        state.deadline = state.connection.deadline();
        register(&mut state.task, cx);
        state.deadline
    }
}

/// Access to a connection.
pub struct Access<'a>(MutexGuard<'a, State>);

impl Deref for Access<'_> {
    type Target = Connection<Wakers>;

    fn deref(&self) -> &Self::Target {
        &self.0.connection
    }
}

impl DerefMut for Access<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.0.connection
    }
}

impl Drop for Access<'_> {
    fn drop(&mut self) {
        let state = &mut *self.0;
        let has_changed = !state.connection.output().is_empty() || state.connection.deadline() != state.deadline;
        if !state.in_turn
            && has_changed
            && let Some(task) = state.task.take()
        {
            task.wake();
        }
    }
}

/// What a stream may do in this turn.
pub enum TurnPermit {
    /// Go on.
    Granted,
    /// Come back later: other connections have their turn.
    Spent,
    /// Nothing any more.
    Closed,
}

/// The end of a stream that an answer is sent by. Dropped before all of it is sent, the stream is reset.
pub struct Sender {
    shared: Arc<Shared>,
    id: u32,
}

impl Sender {
    /// That of an open stream; there is one.
    pub const fn new(shared: Arc<Shared>, id: u32) -> Self {
        Self { shared, id }
    }

    /// Whether the exchange of the stream may be polled, which is work of this turn; its task is woken when the stream
    /// closes.
    pub fn begin_poll(&self, cx: &Context<'_>) -> TurnPermit {
        let mut connection = self.shared.lock();
        if connection.is_turn_spent() && connection.is_open(self.id) {
            return TurnPermit::Spent;
        }
        connection.spend(Turn::POLL);
        match connection.waiter(self.id) {
            Some(wakers) => {
                register(&mut wakers.writing, cx);
                TurnPermit::Granted
            }
            None => TurnPermit::Closed,
        }
    }

    /// Sends the head of the answer, which may be all of it.
    pub fn head(&self, status: StatusCode, fields: &Fields, ends: bool) -> Result<(), StreamClosed> {
        self.shared.lock().send_head(self.id, status, fields, ends)
    }

    /// How much of `wanted` may be sent now; waits until it is something.
    pub fn poll_room(&self, cx: &Context<'_>, wanted: usize) -> Poll<Result<usize, StreamClosed>> {
        let mut connection = self.shared.lock();
        if let Some(room) = connection.room(self.id, wanted).transpose() {
            return Poll::Ready(room);
        }
        if let Some(wakers) = connection.waiter(self.id) {
            register(&mut wakers.writing, cx);
        }
        Poll::Pending
    }

    /// Sends content for which there was room.
    pub fn data(&self, data: &[u8], ends: bool) -> Result<(), StreamClosed> {
        self.shared.lock().send_data(self.id, data, ends)
    }

    /// Sends the trailers that end the answer.
    pub fn trailers(&self, trailers: &Fields) -> Result<(), StreamClosed> {
        self.shared.lock().send_trailers(self.id, trailers)
    }

    /// Resets the stream, unless all of the answer is sent.
    pub fn reset(&self, reason: Reason) {
        self.shared.lock().reset(self.id, reason);
    }
}

impl ClientSide for Sender {
    fn push_interim(&self, status: StatusCode, fields: &Fields) {
        self.shared.lock().send_interim(self.id, status, fields);
    }

    fn cut(&self) -> Option<AbortReason> {
        let reason = self.shared.lock().closed_for(self.id)?;
        Some(match reason {
            Reason::CANCEL => AbortReason::Stalled,
            Reason::ENHANCE_YOUR_CALM => AbortReason::ExcessiveLoad,
            _ => AbortReason::ProtocolError,
        })
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.reset(Reason::CANCEL);
    }
}

/// The end of a stream that a body arrives by.
pub struct Receiver {
    shared: Arc<Shared>,
    id: u32,
    is_over: bool,
}

impl Receiver {
    /// That of an open stream whose body is not known to be empty; there is one.
    pub const fn new(shared: Arc<Shared>, id: u32) -> Self {
        Self { shared, id, is_over: false }
    }

    /// The next frame; nothing but `End` after one that ends the body.
    pub fn poll_frame(&mut self, cx: &Context<'_>) -> Poll<BodyFrame> {
        if self.is_over {
            return Poll::Ready(BodyFrame::End);
        }
        let mut connection = self.shared.lock();
        if let Some(frame) = connection.read(self.id) {
            self.is_over = !matches!(frame, BodyFrame::Data(_) | BodyFrame::Trailers(_) | BodyFrame::Stalled);
            return Poll::Ready(frame);
        }
        if let Some(wakers) = connection.waiter(self.id) {
            register(&mut wakers.reading, cx);
        }
        Poll::Pending
    }

    /// Whether nothing more comes.
    pub fn is_over(&self) -> bool {
        self.is_over || self.shared.lock().is_read(self.id)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        if !self.is_over {
            self.shared.lock().abandon(self.id);
        }
    }
}
