//! The `firebox-infer` binary: allocator, log and exit code around [`firebox_infer::cli`].

use std::process::ExitCode;

use clap::Parser;
use firebox_infer::cli::Cli;
use firebox_model::terminal;

// Faster than the system's for the many large blocks that tensors are.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    terminal::start_log();
    match Cli::parse().execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            terminal::report(&error, error.hint().as_deref());
            ExitCode::from(error.exit_code())
        }
    }
}
