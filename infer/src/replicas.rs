//! Servers of this process: each is a process of its own, which ends with this one.
//!
//! A replica reads its standard input to the end, which comes when this process closes it or ends in any way, and says its
//! address on standard output. Its log goes on to this process's standard error.

use std::io::{self, BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{self, Child, ChildStderr, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use firebox_console::terminal::print;
use firebox_serve::lifecycle::{Lifecycle, Phase};
use firebox_serve::route::Address;

use crate::InferError;

/// How long a replica may take to end before it is killed: it has nothing left to answer.
const END: Duration = Duration::from_secs(10);

/// Time between two looks at whether a replica has ended.
const LOOK: Duration = Duration::from_millis(20);

/// Servers that run; they are killed when this is dropped.
#[derive(Debug)]
pub struct Replicas(Vec<Replica>);

#[derive(Debug)]
struct Replica {
    number: usize,
    child: Child,
    /// Closes when the replica is to end.
    input: Option<ChildStdin>,
    /// Passes its log on.
    log: Option<JoinHandle<()>>,
}

impl Replicas {
    /// Starts a server with each of these commands, and waits until all of them serve. Returns where they are too.
    ///
    /// # Errors
    ///
    /// When one cannot be started, or ends before it serves: its log has said why. The others are killed.
    pub fn start(commands: Vec<Command>) -> Result<(Self, Vec<Address>), InferError> {
        let mut replicas = Self(Vec::new());
        let mut outputs = Vec::new();
        for (number, command) in commands.into_iter().enumerate() {
            let (replica, output) = Replica::start(number, command).map_err(InferError::Process)?;
            replicas.0.push(replica);
            outputs.push(output);
        }
        let mut addresses = Vec::new();
        for (replica, output) in replicas.0.iter_mut().zip(outputs) {
            let mut line = String::new();
            // What cannot be read is no address.
            let _ = BufReader::new(output).read_line(&mut line);
            match line.trim().parse::<Address>() {
                Ok(address) => {
                    let (number, process) = (replica.number, replica.child.id());
                    tracing::info!("replica {number} is process {process} at {address}");
                    addresses.push(address);
                }
                Err(_) => {
                    let status = replica.child.wait().map_err(InferError::Process)?;
                    let exit_code = status.code().and_then(|code| u8::try_from(code).ok());
                    return Err(InferError::Reported {
                        exit_code: exit_code.unwrap_or(1),
                    });
                }
            }
        }
        Ok((replicas, addresses))
    }

    /// Says in the log when one ends, until `ended` is closed; then ends all of them. `none_left` is called when the last one has
    /// ended before. Returns whether there was one to the end, or all have ended well: a supervisor may tell them to end too.
    pub fn watch(mut self, ended: &Receiver<()>, none_left: impl Fn()) -> bool {
        let mut all_well = true;
        while ended.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            let before = self.0.len();
            self.0.retain_mut(|replica| match replica.status() {
                Some(status) if status.success() => {
                    tracing::info!("replica {} has ended", replica.number);
                    false
                }
                Some(status) => {
                    tracing::error!("replica {} has ended: {status}", replica.number);
                    all_well = false;
                    false
                }
                None => true,
            });
            if self.0.is_empty() && before > 0 {
                none_left();
            }
        }
        self.end();
        all_well || !self.0.is_empty()
    }

    /// Ends them, and waits until they have, or for so long that they are killed.
    fn end(&mut self) {
        for replica in &mut self.0 {
            replica.input = None;
        }
        let began = Instant::now();
        while self.0.iter_mut().any(|replica| replica.status().is_none()) && began.elapsed() < END {
            thread::sleep(LOOK);
        }
    }
}

impl Replica {
    fn start(number: usize, mut command: Command) -> io::Result<(Self, ChildStdout)> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        // Ctrl-C is for this process, which ends its replicas when they have nothing left to answer.
        #[cfg(unix)]
        std::os::unix::process::CommandExt::process_group(&mut command, 0);
        let mut child = command.spawn()?;
        let missing = || io::Error::other("a pipe to a replica is missing");
        let log = child.stderr.take().ok_or_else(missing)?;
        let output = child.stdout.take().ok_or_else(missing)?;
        let log = thread::spawn(move || pass_on(number, log));
        let input = child.stdin.take();
        let replica = Self {
            number,
            child,
            input,
            log: Some(log),
        };
        Ok((replica, output))
    }

    /// How it has ended, if it has.
    fn status(&mut self) -> Option<ExitStatus> {
        // One whose status cannot be read counts as running, and is killed at the end.
        self.child.try_wait().unwrap_or_default()
    }
}

impl Drop for Replica {
    fn drop(&mut self) {
        // It may have ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(log) = self.log.take() {
            // What it said last is not lost.
            let _ = log.join();
        }
    }
}

/// Writes the lines of a log with the number of the replica.
fn pass_on(number: usize, log: ChildStderr) {
    let mut log = BufReader::new(log);
    let mut line = Vec::new();
    // Whatever it writes is read, so that it can go on.
    while log
        .read_until(b'\n', &mut line)
        .is_ok_and(|bytes| bytes > 0)
    {
        let text = String::from_utf8_lossy(&line);
        let passed_on = format!("replica {number}: {}\n", text.trim_end());
        // Where standard error is closed or full, the replica goes on all the same.
        let _ = io::stderr().write_all(passed_on.as_bytes());
        line.clear();
    }
}

/// The process that has started this one as a replica.
#[derive(Debug, Clone)]
pub struct Parent {
    /// Replicas that share the machine, this one among them.
    pub replicas: usize,
    serves: Arc<OnceLock<Lifecycle>>,
}

impl Parent {
    /// Ends this process when the other one closes this one's standard input, or is gone.
    pub fn of(replicas: usize) -> Self {
        let serves = Arc::new(OnceLock::<Lifecycle>::new());
        let of_thread = serves.clone();
        thread::spawn(move || {
            // It is closed as well where it cannot be read.
            let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
            match of_thread.get() {
                Some(lifecycle) => lifecycle.advance(Phase::Draining),
                // There is nothing to answer yet.
                None => process::exit(1),
            }
        });
        Self { replicas, serves }
    }

    /// Takes what ends the server that this process now is.
    pub fn ends(&self, lifecycle: &Lifecycle) {
        // It serves once.
        let _ = self.serves.set(lifecycle.clone());
    }

    /// Says where this process serves.
    pub fn tell(&self, address: SocketAddr) {
        if let Err(error) = print(&format!("{address}\n")) {
            tracing::warn!("standard output cannot be written: {error}");
        }
    }
}
