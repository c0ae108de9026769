//! The `firebox-infer` binary: allocator, log and exit code around [`firebox_infer::cli`].

use std::process::ExitCode;

use clap::Parser;
use firebox_infer::InferError;
use firebox_infer::cli::Cli;
use firebox_model::allocator::{ALLOCATOR, Allocator};
use firebox_model::terminal;

#[global_allocator]
static GLOBAL: Allocator = ALLOCATOR;

fn main() -> ExitCode {
    terminal::run(
        || Cli::parse().execute(),
        InferError::hint,
        InferError::exit_code,
    )
}
