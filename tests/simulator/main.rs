//! A simulator of HTTP/2 connections: a peer that is honest, hostile or broken against the state machine, with a service
//! behind it and a model beside it. Deterministic: a seed is a connection, and hours of its time are a second of ours.
//!
//! `cargo test --test simulator` runs a few hundred seeds; `SIMULATOR_SECONDS=60` goes on with new ones for so long, and
//! `SIMULATOR_SEED=n` runs one and prints what happens. A seed that finds a fault becomes a line in [`REGRESSIONS`].
//!
//! After each step of each connection:
//! - the windows are those of the model: the peer is never sent more than it granted, and every byte is credited once,
//!   when it is read or of no use any more;
//! - the memory that bodies hold, the streams, the output, the work of a turn and what a peer may ask for without
//!   completing anything are within bounds;
//! - no stream waits that could go on, and no wait is longer than it may be;
//! - every request that begins ends, whole or told that it is not, and nothing survives its connection.

#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test that cannot go on says so and stops")]

mod differential;
#[path = "../support/frames.rs"]
#[expect(dead_code, reason = "the black-box tests use the rest")]
mod frames;
mod model;
mod peer;
mod scenarios;
mod service;
mod world;

use std::time::{Duration, Instant};

use world::{Manner, World};

/// Seeds that have found a fault once.
const REGRESSIONS: &[(Manner, u64)] = &[];

/// Seeds of each manner that are always run.
const SEEDS: u64 = 60;

/// A generator of numbers that nobody has to guess (splitmix64).
#[derive(Debug)]
pub struct Random(u64);

impl Random {
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub const fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`, which is not 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// True once in so many times.
    pub fn once_in(&mut self, times: usize) -> bool {
        self.below(times) == 0
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }
}

fn run(manner: Manner, seed: u64) {
    let outcome = std::panic::catch_unwind(|| World::new(manner, seed).run());
    if outcome.is_err() {
        panic!("SIMULATOR_SEED={seed} of {manner:?} fails");
    }
}

#[test]
fn connections_keep_their_promises_whatever_the_peer_does() {
    let manners = [Manner::Honest, Manner::Hostile, Manner::Flooding, Manner::Broken];
    if let Ok(seed) = std::env::var("SIMULATOR_SEED") {
        let seed = seed.parse().unwrap();
        return manners.into_iter().for_each(|manner| World::new(manner, seed).run());
    }
    REGRESSIONS.iter().for_each(|(manner, seed)| run(*manner, *seed));
    (0..SEEDS).for_each(|seed| manners.into_iter().for_each(|manner| run(manner, seed)));
    let seconds = std::env::var("SIMULATOR_SECONDS").map_or(0, |seconds| seconds.parse().unwrap());
    let until = Instant::now() + Duration::from_secs(seconds);
    let mut seed = SEEDS;
    while Instant::now() < until {
        manners.into_iter().for_each(|manner| run(manner, seed));
        seed += 1;
    }
    eprintln!("{} connections simulated", manners.len() as u64 * seed);
}
