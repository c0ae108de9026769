//! What both binaries do on a terminal: the log, errors as one sentence with a hint, and data on standard
//! output.

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind, IsTerminal, Write};
use std::process::ExitCode;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::advice::{Advice, Advise};
use crate::panics;

/// Sends the log to standard error, in colour on a terminal. `RUST_LOG` chooses what is in it; by default
/// warnings, and what Firebox itself says.
fn start_log() {
    let filter =
        EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn,firebox=info"));
    let wants_no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        // It would be said on standard error, where it cannot be written either.
        .log_internal_errors(false)
        .with_ansi(io::stderr().is_terminal() && !wants_no_color)
        .event_format(PlainMessage)
        .init();
}

/// Runs a binary's command with its log: says what went wrong with its causes and its hint, and returns the exit
/// code. A panic is reported as an internal error, with exit code 1.
///
/// The log and the panic hook are set for the whole process, so only binaries may call this.
///
/// # Panics
///
/// When there is a log already.
pub fn run<E: Advise>(command: impl FnOnce() -> Result<(), E>) -> ExitCode {
    start_log();
    panics::install_hook();
    match panics::caught(command) {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(error)) => {
            let advice = error.advice();
            if !advice.is_printed {
                report(&error);
            }
            ExitCode::from(advice.exit_code)
        }
        Err(message) => {
            report(&Fault(message));
            ExitCode::FAILURE
        }
    }
}

/// The message of a panic.
#[derive(Debug, thiserror::Error)]
#[error("internal error: {0}")]
struct Fault(String);

impl Advise for Fault {
    fn advice(&self) -> Advice {
        Advice::FAILURE
            .hint("please report it; RUST_LOG=debug RUST_BACKTRACE=1 show where it happened")
    }
}

/// Prints an error on standard error in one sentence, and what to do about it on a line of its own.
pub fn report(error: &impl Advise) {
    let mut text = format!("error: {}\n", sentence(error));
    if let Some(hint) = error.hint() {
        text += &format!("hint: {hint}\n");
    }
    // In one piece, since launchers of several processes bring together what these write, piece by piece. Where standard
    // error is closed or full, the exit code is left.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// Writes to standard output; a reader that has seen enough (`| head`) is not an error.
///
/// # Errors
///
/// When standard output cannot be written.
pub fn print(text: &str) -> io::Result<()> {
    let mut output = io::stdout().lock();
    let written = output
        .write_all(text.as_bytes())
        .and_then(|()| output.flush());
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error),
        _ => Ok(()),
    }
}

/// An error and its causes in one sentence, from the outermost to the innermost. Control characters are
/// escaped: names come from files, which may try to write on the terminal.
pub fn sentence(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let message = inner.to_string();
        // Some errors repeat their cause in their own message.
        if !text.ends_with(&message) {
            text = format!("{text}: {message}");
        }
        cause = inner.source();
    }
    let printable = |c: char| match c.is_control() {
        true => c.escape_default().to_string(),
        false => c.to_string(),
    };
    text.chars().map(printable).collect()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("a.toml cannot be read")]
    struct Outer(#[source] io::Error);

    #[derive(Debug, thiserror::Error)]
    #[error("no run: {0}")]
    struct Repeating(#[source] Outer);

    #[test]
    fn a_sentence_joins_the_causes_once() {
        let outer = Outer(io::Error::new(ErrorKind::NotFound, "no such file"));
        assert_eq!(sentence(&outer), "a.toml cannot be read: no such file");
        let hostile = Outer(io::Error::other("\x1b[2Jno\nsuch"));
        assert_eq!(
            sentence(&hostile),
            "a.toml cannot be read: \\u{1b}[2Jno\\nsuch"
        );
        assert_eq!(
            sentence(&Repeating(outer)),
            "no run: a.toml cannot be read: no such file"
        );
    }
}
