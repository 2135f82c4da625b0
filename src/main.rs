//! The program `vestibule`; everything is in the library, so that benches and fuzz targets reach the parts.

use std::process::ExitCode;

fn main() -> ExitCode {
    vestibule::cli::main()
}
