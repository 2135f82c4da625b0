//! The black-box tests of the program.
