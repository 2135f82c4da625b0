//! What the black-box tests share: the edge as a process, upstreams that record what reaches them, and clients that say
//! exactly what they are told to.

pub mod client;
pub mod edge;
pub mod frames;
pub mod origin;

pub use client::Client;
pub use edge::Edge;
pub use origin::Origin;
