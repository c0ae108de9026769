//! The `firebox-train` binary: allocator, log and exit code around [`firebox_train::cli`].

use std::process::ExitCode;

use clap::Parser;
use firebox_model::allocator::Reporting;
use firebox_model::terminal;
use firebox_train::cli::{Cli, CliError};
use mimalloc::MiMalloc;

// Faster than the system's for the many large blocks that tensors are.
#[global_allocator]
static ALLOCATOR: Reporting<MiMalloc> = Reporting(MiMalloc);

/// `mi_option_purge_delay`, which the bindings lack a name for; retired options keep their numbers.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

fn main() -> ExitCode {
    // Freed memory is kept: each step needs it again, and pages that went back to the system are zeroed
    // anew, which took 44 % of a training step's time.
    // SAFETY: sets a number of the allocator, before any other thread runs.
    #[allow(unsafe_code)]
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, -1);
    }
    terminal::run(
        || Cli::parse().execute(),
        CliError::hint,
        CliError::exit_code,
    )
}
