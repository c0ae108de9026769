//! Runs a worker in its own process, so that a crash stays there and its memory is measured alone.

use std::env;
use std::io::{BufRead, BufReader, Read};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;

use super::{Failure, Worker};
use crate::InferError;

/// The hidden command that runs a [`Worker`].
pub(crate) const COMMAND: &str = "compare-device";

/// Runs a worker in its own process; `stage` is called with the name of each stage.
///
/// # Errors
///
/// When the process cannot be started or read. A worker that fails is the inner `Err`.
pub(super) fn run(
    worker: &Worker,
    threads: Option<u16>,
    mut stage: impl FnMut(&str),
) -> Result<Result<(), Failure>, InferError> {
    stage("starting");
    let mut child = command(worker, threads)?
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(InferError::Process)?;
    let (output, errors) = (child.stdout.take(), child.stderr.take());
    let log = thread::spawn(move || {
        let mut log = Vec::new();
        if let Some(mut errors) = errors {
            // Keep what was read before an error.
            let _ = errors.read_to_end(&mut log);
        }
        String::from_utf8_lossy(&log).into_owned()
    });
    for line in output
        .into_iter()
        .flat_map(|output| BufReader::new(output).lines())
    {
        stage(&line.map_err(InferError::Process)?);
    }
    let status = child.wait().map_err(InferError::Process)?;
    let log = log.join().unwrap_or_default();
    Ok(match status.success() {
        true => Ok(()),
        false => Err(failure(status, log)),
    })
}

fn command(worker: &Worker, threads: Option<u16>) -> Result<Command, InferError> {
    let mut command = Command::new(env::current_exe().map_err(InferError::Process)?);
    command
        .arg(COMMAND)
        .arg(&worker.checkpoint)
        .args(["--device", &worker.device])
        .args(["--dtype", &worker.dtype.to_string()])
        .arg("--tokens")
        .arg(&worker.tokens)
        .arg("--output")
        .arg(&worker.output)
        // Colour codes are unreadable in a report.
        .env("NO_COLOR", "1");
    if let Some(reference) = &worker.reference {
        command.arg("--reference").arg(reference);
    }
    if worker.gradients {
        command.arg("--gradients");
    }
    if let Some(threads) = threads {
        command.args(["--threads", &threads.to_string()]);
    }
    Ok(command)
}

/// Why a process failed, from the last lines of its standard error.
fn failure(status: ExitStatus, log: String) -> Failure {
    let after = |mark: &str| {
        let line = log.lines().rev().find(|line| line.starts_with(mark))?;
        Some(line[mark.len()..].to_owned())
    };
    let reason = after("error: ")
        .or_else(|| panic_message(&log))
        .unwrap_or_else(|| format!("the process ended with {status}"));
    // The kernel's OOM killer sends a signal.
    let killed = status.code().is_none().then(|| {
        "a process killed by a signal has often run out of memory; fewer --tokens or --dtype bf16 need less".to_owned()
    });
    Failure {
        reason,
        hint: after("hint: ").or(killed),
        log,
    }
}

/// The line after `thread … panicked at …:`.
fn panic_message(log: &str) -> Option<String> {
    let mut lines = log
        .lines()
        .skip_while(|line| !line.contains("panicked at "));
    lines.next()?;
    lines.next().map(|message| format!("panicked: {message}"))
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    #[test]
    fn an_error_and_its_hint_are_found_among_other_lines() {
        let log = "loads\nerror: no adapter\nhint: install one\n".to_owned();
        let failure = failure(ExitStatus::from_raw(2 << 8), log.clone());
        let expected = Failure {
            reason: "no adapter".to_owned(),
            hint: Some("install one".to_owned()),
            log,
        };
        assert_eq!(failure, expected);
    }

    #[test]
    fn a_panic_and_a_signal_are_described() {
        let log = "thread 'main' (7) panicked at a/b.rs:3:4:\nout of memory\nstack backtrace:\n"
            .to_owned();
        let panicked = failure(ExitStatus::from_raw(101 << 8), log);
        assert_eq!(
            (panicked.reason.as_str(), panicked.hint),
            ("panicked: out of memory", None)
        );
        let killed = failure(ExitStatus::from_raw(9), String::new());
        assert!(killed.reason.contains("signal: 9"), "{}", killed.reason);
        assert!(killed.hint.unwrap().contains("memory"));
    }
}
