//! The black-box tests of the program. One binary, so that one link serves them all.

mod config;
