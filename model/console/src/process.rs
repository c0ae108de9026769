//! Work that this program gives to a process of its own, a hidden command of the same binary: it may crash, and its
//! memory is its own.

use std::env;
use std::io::{self, BufRead, BufReader, Read};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;

use serde::Serialize;

/// The hidden command by which a comparison runs one of its devices.
pub const COMPARE_DEVICE: &str = "compare-device";

/// Why a process failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// In a sentence: the one of its error, where it could say it.
    pub reason: String,
    /// What to do about it.
    pub hint: Option<String>,
    /// All that it wrote to standard error.
    pub log: String,
}

/// A hidden command of this program.
///
/// # Errors
///
/// When the path of this program is unknown.
pub fn hidden_command(name: &str) -> io::Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.arg(name);
    Ok(command)
}

/// Runs a command to its end; `line` is called with each line of its standard output. `less_memory` says how it needs
/// less memory, for the hint of one that the system killed. That the command fails is the inner error.
///
/// # Errors
///
/// When the process cannot be started or read.
pub fn run(
    mut command: Command,
    less_memory: &str,
    mut line: impl FnMut(&str),
) -> io::Result<Result<(), Failure>> {
    let mut child = command
        // Colours do not read well in a report.
        .env("NO_COLOR", "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let (output, errors) = (child.stdout.take(), child.stderr.take());
    // Both are read at once, so that neither fills up.
    let log = thread::spawn(move || {
        let mut log = Vec::new();
        if let Some(mut errors) = errors {
            // What cannot be read is missing in a message.
            let _ = errors.read_to_end(&mut log);
        }
        String::from_utf8_lossy(&log).into_owned()
    });
    for text in output
        .map(BufReader::new)
        .into_iter()
        .flat_map(BufRead::lines)
    {
        line(&text?);
    }
    let status = child.wait()?;
    let log = log.join().unwrap_or_default();
    Ok(match status.success() {
        true => Ok(()),
        false => Err(failure(status, less_memory, log)),
    })
}

/// Why a process failed, from what it said last.
fn failure(status: ExitStatus, less_memory: &str, log: String) -> Failure {
    let after = |mark: &str| {
        let mut lines = log.lines().rev();
        lines
            .find_map(|line| line.strip_prefix(mark))
            .map(str::to_owned)
    };
    // On Unix, a process without a code was killed.
    let killed = status.code().is_none();
    let ended = || match killed {
        true => format!(
            "the process was killed ({status}), probably because the system ran out of memory"
        ),
        false => format!("the process ended with {status} and no message"),
    };
    Failure {
        reason: after("error: ")
            .or_else(|| panic_message(&log))
            .unwrap_or_else(ended),
        hint: after("hint: ").or_else(|| killed.then(|| less_memory.to_owned())),
        log,
    }
}

/// What stands below `thread … panicked at …:`.
fn panic_message(log: &str) -> Option<String> {
    let mut lines = log
        .lines()
        .skip_while(|line| !line.contains("panicked at "));
    lines.next()?;
    lines
        .next()
        .map(|message| format!("it panicked: {message}"))
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    const LESS: &str = "lower train.micro_batch";

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn lines_come_in_order_and_a_failure_has_its_sentence_and_hint() {
        let mut lines = Vec::new();
        let script = "echo one; echo loads >&2; echo two; echo 'error: no adapter' >&2; echo 'hint: add one' >&2; exit 2";
        let failed = run(shell(script), LESS, |line| lines.push(line.to_owned())).unwrap();
        assert_eq!(lines, ["one", "two"]);
        let expected = Failure {
            reason: "no adapter".to_owned(),
            hint: Some("add one".to_owned()),
            log: "loads\nerror: no adapter\nhint: add one\n".to_owned(),
        };
        assert_eq!(failed, Err(expected));
        assert_eq!(run(shell("exit 0"), LESS, |_| ()).unwrap(), Ok(()));
    }

    #[test]
    fn a_killed_process_is_told_how_to_need_less_memory() {
        let killed = run(shell("kill -9 $$"), LESS, |_| ()).unwrap().unwrap_err();
        assert!(
            killed.reason.contains("killed (signal: 9"),
            "{}",
            killed.reason
        );
        assert_eq!(killed.hint.as_deref(), Some(LESS));
    }

    #[test]
    fn a_panic_and_silence_are_put_in_words() {
        let log = "thread 'main' (7) panicked at a/b.rs:3:4:\nno room\nstack backtrace:\n";
        let panicked = failure(ExitStatus::from_raw(101 << 8), LESS, log.to_owned());
        assert_eq!(
            (panicked.reason.as_str(), panicked.hint),
            ("it panicked: no room", None)
        );
        let silent = failure(ExitStatus::from_raw(3 << 8), LESS, String::new());
        assert_eq!(
            silent.reason,
            "the process ended with exit status: 3 and no message"
        );
    }
}
