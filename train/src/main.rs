//! The `firebox-train` binary: allocator, threads, Ctrl-C, log and exit code around [`firebox_train::cli`].

use std::process::ExitCode;

use clap::Parser;
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
        let cli = Cli::parse();
        let control = Control::default();
        device::set_threads(cli.threads());
        if let Some(device) = cli.device() {
            allocator::describe(device, LESS_MEMORY, &control);
        }
        control.stop_on_interrupt(Some(STOPPING));
        cli.execute(&control)
    };
    terminal::run(command)
}
