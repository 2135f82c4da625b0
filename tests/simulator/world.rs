//! A connection with everything around it: the peer, the service, the socket between, and the time.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

use bytes::BytesMut;
use vestibule::wire::h2::{
    Connection,
    connection::ConnectionEnd,
    cost::{self, Limits},
};

use crate::{
    Random,
    model::{Model, View},
    peer::Peer,
    service::{Task, Wakers},
};

/// What a peer is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// It keeps to the RFC, reads what it is sent, and finishes what it begins.
    Honest,
    /// It keeps to the RFC and makes us work for nothing.
    Hostile,
    /// It sends one kind of frame again and again, as fast as it can.
    Flooding,
    /// It sends what it likes.
    Broken,
}

pub const LIMITS: Limits = Limits {
    streams: 50,
    list: 16_384,
    header: Some(Duration::from_secs(15)),
    keep_alive: Some(Duration::from_secs(300)),
    body_stall: Some(Duration::from_secs(60)),
};

pub struct World {
    manner: Manner,
    random: Random,
    machine: Connection<Wakers>,
    model: RefCell<Model>,
    peer: Peer,
    tasks: BTreeMap<u32, Task>,
    input: BytesMut,
    /// Of which the machine has left whole frames.
    has_frames: bool,
    began: Instant,
    now: Instant,
    /// What the socket takes of us at once.
    socket: usize,
    /// Bytes that it has taken in all, and whether it took any since nothing last moved.
    written: usize,
    wrote: bool,
    trace: bool,
}

impl World {
    pub fn new(manner: Manner, seed: u64) -> Self {
        let mut random = Random::new(seed.wrapping_mul(3).wrapping_add(manner as u64));
        let now = Instant::now();
        let peer = Peer::new(manner, Random::new(random.next()));
        let trace = std::env::var("SIMULATOR_SEED").is_ok();
        Self {
            manner,
            random,
            machine: Connection::new(LIMITS, now),
            model: RefCell::new(Model::new(now)),
            peer,
            tasks: BTreeMap::new(),
            input: BytesMut::new(),
            has_frames: false,
            began: now,
            now,
            socket: usize::MAX,
            written: 0,
            wrote: false,
            trace,
        }
    }

    pub fn run(mut self) {
        let steps = 100 + self.random.below(900);
        for _ in 0..steps {
            self.step();
            if self.machine.end().is_some() {
                break;
            }
        }
        self.finish();
    }

    fn step(&mut self) {
        for _ in 0..self.random.below(6) {
            self.peer.act();
        }
        if self.manner != Manner::Honest {
            self.peer.drip();
        }
        self.socket = match self.manner {
            Manner::Honest => usize::MAX,
            _ => self.random.pick(&[usize::MAX, usize::MAX, usize::MAX, 0, 1, 1_000, 70_000]),
        };
        match self.random.below(200) {
            0 => self.machine.shut_down(),
            2 => self.machine.close(),
            1 if self.manner != Manner::Honest => self.machine.lose(),
            _ => {}
        }
        self.turns();
        let millis = match self.random.below(30) {
            // Whoever is honest does not go to sleep in the middle of something.
            _ if self.manner == Manner::Flooding => self.random.below(5),
            0 if self.manner != Manner::Honest || self.peer.open_streams() == 0 => self.random.below(120_000),
            1..=9 => self.random.below(1_000),
            _ => self.random.below(5),
        };
        self.pass(Duration::from_millis(millis as u64));
    }

    /// Lets time pass, with a turn at each deadline.
    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        for _ in 0..100_000 {
            let by_itself = self.tasks.values().filter_map(|task| task.wakes_at(self.now)).min();
            let next = self.machine.deadline().into_iter().chain(by_itself).min();
            let Some(next) = next.filter(|next| *next <= until) else {
                self.now = until;
                return;
            };
            self.now = self.now.max(next);
            self.turns();
            if self.machine.is_over() {
                self.now = until;
                return;
            }
        }
        panic!("the timer rings for ever");
    }

    /// Turns until nothing moves any more, as a driver takes them.
    fn turns(&mut self) {
        for _ in 0..100_000 {
            self.machine.begin_turn(self.now);
            self.model.get_mut().begin_turn();
            self.turn();
            self.check();
            if !self.machine.is_turn_spent() {
                return self.check_rest();
            }
        }
        panic!("a turn is spent for ever");
    }

    fn turn(&mut self) {
        let mut moved = true;
        while std::mem::take(&mut moved) {
            let arrived = self.peer.arrived();
            if self.machine.can_receive() && arrived + usize::from(self.has_frames) > 0 {
                let some = 1 + self.random.below(cost::READ);
                let piece = arrived.min(if self.random.once_in(3) { some } else { usize::MAX });
                self.input.extend(self.peer.arrive(piece));
                let took = self.receive();
                moved |= took && self.machine.end().is_none() || self.peer.arrived() > 0;
            }
            while let Some(incoming) = self.machine.next_request() {
                assert!(!self.tasks.contains_key(&incoming.id) && self.machine.is_open(incoming.id), "a stale request");
                let task = Task::new(&incoming, self.manner, &mut self.random, self.now);
                self.tasks.insert(incoming.id, task);
                moved = true;
            }
            for task in self.tasks.values_mut().filter(|task| task.is_woken(self.now)) {
                if self.machine.is_turn_spent() {
                    break;
                }
                task.poll(&mut self.machine, &mut self.random, self.now);
            }
            moved |= self.tasks.values().any(|task| task.is_woken(self.now));
            moved |= self.write();
            if self.machine.is_turn_spent() {
                return;
            }
        }
    }

    /// Lets the machine take frames, and the model look at them; whether it took any.
    fn receive(&mut self) -> bool {
        let (before, output, open) = (self.input.clone(), self.machine.output().len(), self.open());
        self.machine.receive(&mut self.input);
        Model::check_output(output, self.machine.output().len());
        let took = before.len() - self.input.len();
        self.has_frames = !self.machine.can_receive() && !self.input.is_empty();
        if self.machine.end().is_none() {
            let view = View { open, ..self.view() };
            self.model.borrow_mut().take(&before[..took], &view);
        }
        took > 0
    }

    fn open(&self) -> BTreeSet<u32> {
        self.peer.streams.keys().copied().filter(|id| self.machine.is_open(*id)).collect()
    }

    fn view(&self) -> View<'_> {
        View {
            now: self.now,
            began: self.began,
            tasks: &self.tasks,
            peer: &self.peer,
            open: self.open(),
            held: self.machine.held(),
            written: self.written,
        }
    }

    /// Writes as the socket takes it; whether streams may go on for it.
    fn write(&mut self) -> bool {
        let (mut may_go_on, mut wrote) = (false, false);
        while !self.machine.output().is_empty() && self.socket > 0 {
            let n = self.machine.output().len().min(self.socket);
            let bytes = self.machine.output()[..n].to_vec();
            self.socket -= if self.socket == usize::MAX { 0 } else { n };
            may_go_on |= self.machine.written(n);
            self.peer.receive(&bytes);
            self.written += n;
            wrote = true;
        }
        self.wrote |= wrote;
        let waits = !self.machine.output().is_empty();
        self.machine.note_socket(wrote, waits);
        may_go_on || wrote && self.peer.arrived() > 0
    }

    /// What is true after every turn.
    fn check(&self) {
        let held = self.machine.held();
        assert!(held <= cost::held_at_most(LIMITS.streams), "bodies hold {held} bytes");
        assert!(self.machine.open_streams() <= LIMITS.streams, "{} streams", self.machine.open_streams());
        let most = cost::HIGH_WATER + (LIMITS.streams + 1) * 4_096;
        assert!(self.machine.output().len() <= most, "{} bytes of output", self.machine.output().len());
        if self.machine.end().is_some() {
            assert_eq!(self.machine.open_streams(), 0, "streams survive their connection");
            let asleep = self.tasks.values().find(|task| !task.is_done && !task.may_write.get());
            assert!(asleep.is_none(), "nobody is told of the end");
        }
        if self.trace {
            let (open, out) = (self.machine.open_streams(), self.machine.output().len());
            eprintln!("{:?} {:?}: {open} open, {held} held, {out} to write", self.manner, self.now - self.began);
        }
    }

    /// What is true when nothing moves: whoever waits, waits for the peer.
    fn check_rest(&mut self) {
        let wrote = std::mem::take(&mut self.wrote);
        if self.machine.end().is_some() || self.peer.is_broken {
            return;
        }
        let (view, output) = (self.view(), self.machine.output().len());
        let mut model = self.model.borrow_mut();
        model.check_waits(&view, &self.input, output, wrote);
        if output > 0 {
            return;
        }
        assert_eq!(self.peer.arrived(), 0, "what was sent is not read");
        model.check_windows(&view);
        if !self.peer.sent.is_empty() {
            return;
        }
        let is_settled = self.peer.windows.len() == 1;
        let window = self.peer.granted - self.peer.received_all;
        for (id, stream) in &self.peer.streams {
            let Some(task) = self.tasks.get(id).filter(|task| !task.is_done && !stream.is_reset) else { continue };
            let own = self.peer.windows[0] + stream.granted - stream.received;
            let waits_for_us = !task.may_write.get() && task.wakes_at(self.now).is_none() && own > 0 && window > 0;
            assert!(!(is_settled && waits_for_us), "stream {id} waits with room for {own} of {window} bytes");
            let unread = stream.body_sent - task.got;
            assert!(task.may_read.get() || unread == 0 || !task.reads(), "stream {id} does not read {unread} bytes");
        }
        let open = self.peer.open_streams();
        assert!(self.machine.open_streams() <= open, "{} streams of {open}", self.machine.open_streams());
    }

    /// The peer does nothing any more but take what it is sent; in the end there is nothing left.
    fn finish(mut self) {
        self.socket = usize::MAX;
        if self.manner == Manner::Honest && self.machine.end().is_none() {
            self.drain();
        }
        for _ in 0..20 {
            self.socket = usize::MAX;
            self.turns();
            self.pass(Duration::from_secs(600));
            if self.machine.is_over() || self.machine.end().is_some() && !self.machine.linger() {
                break;
            }
        }
        assert!(self.machine.end().is_some(), "a connection of a silent peer goes on for hours");
        self.tasks.values_mut().filter(|task| !task.is_done).for_each(|task| {
            task.may_read.set(true);
            task.poll(&mut self.machine, &mut self.random, self.now + Duration::from_secs(3_600));
        });
        assert!(self.tasks.values().all(|task| task.is_done), "a request goes on without its connection");
        assert_eq!((self.machine.open_streams(), self.machine.held()), (0, 0));
        if self.manner == Manner::Honest {
            assert_eq!(self.machine.end(), Some(ConnectionEnd::Done), "an honest peer is told off");
        }
    }

    /// An honest peer finishes what it has begun: then every credit is back, but for what is not worth an update.
    fn drain(&mut self) {
        for _ in 0..20_000 {
            if self.peer.open_streams() == 0 || self.machine.end().is_some() {
                break;
            }
            self.peer.finish_something();
            self.turns();
            self.pass(Duration::from_millis(20));
        }
        assert!(self.machine.end().is_some() || self.peer.open_streams() == 0, "honest requests do not end");
        if self.machine.end().is_none() {
            let credit = self.peer.credit;
            let least = i64::from(cost::CONNECTION_WINDOW - cost::CONNECTION_WINDOW / 4);
            assert!(credit > least, "credit is lost: {credit} is left");
            assert_eq!(self.machine.held(), 0);
        }
    }
}
