//! The `firebox-infer` binary: allocator, log and exit code around [`firebox_infer::cli`].

use std::process::ExitCode;

use clap::Parser;
use firebox_infer::InferError;
use firebox_infer::cli::Cli;
use firebox_model::allocator::Reporting;
use firebox_model::terminal;
use mimalloc::MiMalloc;

// Faster than the system's for the many large blocks that tensors are.
#[global_allocator]
static ALLOCATOR: Reporting<MiMalloc> = Reporting(MiMalloc);

fn main() -> ExitCode {
    terminal::run(
        || Cli::parse().execute(),
        InferError::hint,
        InferError::exit_code,
    )
}
