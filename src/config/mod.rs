//! The configuration file: raw text in, an immutable [`Plan`](plan::Plan) or every diagnostic out.

pub mod plan;
