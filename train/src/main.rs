//! The `firebox-train` binary: allocator, threads, Ctrl-C, log and exit code around [`firebox_train::cli`].

use std::process::ExitCode;

use firebox_comm::mpi;
use firebox_console::terminal;
use firebox_runtime::allocator::{self, ALLOCATOR, Allocator};
use firebox_runtime::control::Control;
use firebox_runtime::device;
use firebox_train::cli::Cli;
use firebox_train::error::LESS_MEMORY;

#[global_allocator]
static GLOBAL: Allocator = ALLOCATOR;

const STOPPING: &str =
    "finishing the step and writing a checkpoint; press Ctrl-C again to stop immediately";

fn main() -> ExitCode {
    allocator::keep_freed();
    let command = || {
        let cli = Cli::read()?;
        let control = Control::default();
        device::set_threads(cli.threads());
        if let Some(device) = cli.device() {
            allocator::describe(device, LESS_MEMORY, &control);
        }
        // The launcher says what it does with a signal.
        control.stop_on_interrupt((!mpi::launched()).then_some(STOPPING));
        cli.execute(&control)
    };
    terminal::run(command)
}
