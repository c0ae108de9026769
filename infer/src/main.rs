//! The `firebox-infer` binary: allocator, threads, Ctrl-C, log and exit code around [`firebox_infer::cli`].

use std::process::ExitCode;

use firebox_console::terminal;
use firebox_infer::cli::Cli;
use firebox_runtime::allocator::{self, ALLOCATOR, Allocator};
use firebox_runtime::control::Control;
use firebox_runtime::device;

#[global_allocator]
static GLOBAL: Allocator = ALLOCATOR;

fn main() -> ExitCode {
    allocator::keep_freed();
    let command = || {
        let cli = Cli::read()?;
        let control = Control::default();
        device::set_threads(cli.threads());
        if let Some(device) = cli.device() {
            allocator::describe(device, cli.less_memory(), &control);
        }
        if !cli.takes_signals() {
            control.stop_on_interrupt(None);
        }
        cli.execute(&control)
    };
    terminal::run(command)
}
