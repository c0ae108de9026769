//! The `firebox-train` binary: allocator, log and exit code around [`firebox_train::cli`].

use std::process::ExitCode;

use clap::Parser;
use firebox_model::allocator::{ALLOCATOR, Allocator};
use firebox_model::terminal;
use firebox_train::cli::{Cli, CliError};

#[global_allocator]
static GLOBAL: Allocator = ALLOCATOR;

fn main() -> ExitCode {
    terminal::run(
        || Cli::parse().execute(),
        CliError::hint,
        CliError::exit_code,
    )
}
