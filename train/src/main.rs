//! The `firebox-train` binary: allocator, log and exit code around [`firebox_train::cli`].

use std::fmt;
use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::Parser;
use firebox_train::cli::{Cli, sentence};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

// The system's allocator gives large blocks back and faults them in anew for every tensor of every step.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `mi_option_purge_delay`, which the bindings lack a name for; retired options keep their numbers.
const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;

fn main() -> ExitCode {
    // Freed memory is kept: each step needs it again, and pages that went back to the system are zeroed
    // anew, which took half of a training step's time.
    // SAFETY: sets a number of the allocator, before any other thread runs.
    #[allow(unsafe_code)]
    unsafe {
        libmimalloc_sys::mi_option_set(PURGE_DELAY, -1);
    }
    start_log();
    match Cli::parse().execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", sentence(&error));
            if let Some(hint) = error.hint() {
                eprintln!("hint: {hint}");
            }
            ExitCode::from(error.exit_code())
        }
    }
}

fn start_log() {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new("warn,firebox_train=info,firebox_model=info"));
    let wants_no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && !wants_no_color)
        .event_format(PlainMessage)
        .init();
}

/// The message alone, and before it the level where it is not `info`.
struct PlainMessage;

impl<S, N> FormatEvent<S, N> for PlainMessage
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let (name, color) = match *event.metadata().level() {
            Level::ERROR => ("error: ", 31),
            Level::WARN => ("warning: ", 33),
            Level::INFO => ("", 0),
            Level::DEBUG => ("debug: ", 2),
            Level::TRACE => ("trace: ", 2),
        };
        if !name.is_empty() && writer.has_ansi_escapes() {
            write!(writer, "\x1b[{color}m{name}\x1b[0m")?;
        } else {
            write!(writer, "{name}")?;
        }
        context.format_fields(writer.by_ref(), event)?;
        writeln!(writer)
    }
}
