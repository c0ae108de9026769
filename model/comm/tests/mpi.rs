//! Ranks as processes: the same operations and failures as on threads, and processes that are killed.
//!
//! The tests start `mpirun` with this very program, which runs the test [`a_rank`] alone in every process.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{self, Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use common::{Words, failures, program};
use firebox_comm::mpi::{self, World};
use firebox_comm::{Comm, CommError, Options, RunError};

/// What a process is to do as a rank.
const ROLE: &str = "FIREBOX_COMM_TEST_ROLE";

/// Numbers of processes.
const SIZES: [usize; 4] = [2, 3, 4, 8];

/// Seeds of programs.
const SEEDS: u64 = 12;

/// How long the others may live when one has been killed.
const AFTERWARDS: Duration = Duration::from_secs(2);

/// One run at a time, so that what is left behind is that of one.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does what a rank is to do, in a process that `mpirun` has started; nothing otherwise.
#[test]
fn a_rank() {
    let Ok(role) = env::var(ROLE) else { return };
    assert!(mpi::launched());
    let world = World::start().unwrap();
    println!(
        "rank {} of {} is process {}",
        world.rank(),
        world.size(),
        process::id()
    );
    let options = Options {
        deadline: match role == "hangs" {
            true => failures::DEADLINE,
            false => Options::default().deadline,
        },
        ..Options::default()
    };
    let failing = failures::ALL
        .into_iter()
        .find(|failing| failing.name == role);
    let body = move |comm: Arc<dyn Comm>| match (role.as_str(), failing) {
        (_, Some(failing)) => (failing.body)(&comm),
        ("programs", _) => {
            let mut seeds = 0..SEEDS;
            seeds
                .try_for_each(|seed| program::run(&comm, seed))
                .and_then(|()| program::long_sum(&comm))
                .map_err(|error| error.to_string())
        }
        ("a message without a receiver", _) => {
            let sent = comm.send(0, &[7; 1 << 20]);
            sent.map_err(|error| error.to_string())
        }
        ("works for ever", _) => forever(&comm).map_err(|error| error.to_string()),
        ("computes for ever", _) => {
            comm.doing(format_args!("a long product of rank {}", comm.rank()));
            thread::sleep(Duration::from_secs(3600));
            Ok(())
        }
        (role, _) => Err(format!("there is no role {role}")),
    };
    let body = |comm| body(comm).map_err(Words);
    if world.run(&options, body, report).is_err() {
        process::exit(3);
    }
}

fn report(error: &RunError<Words>, _is_first: bool) {
    // In one piece, since the launcher brings together what the ranks write, piece by piece.
    let line = format!("error: {error}\n");
    io::stderr().write_all(line.as_bytes()).unwrap();
}

fn forever(comm: &Arc<dyn Comm>) -> Result<(), CommError> {
    let pair = comm.split(comm.rank() / 2)?;
    loop {
        for layer in 0..4 {
            comm.doing(format_args!("layer {layer} of rank {}", comm.rank()));
            pair.all_reduce_sum(&mut [1.0; 5_000])?;
        }
        comm.barrier()?;
    }
}

/// A run of `mpirun`.
struct Run {
    launcher: Child,
    /// The ranks' processes, in the order of the ranks.
    processes: Vec<u32>,
    /// Files that were there before.
    files: BTreeSet<PathBuf>,
}

/// How a run has ended.
struct End {
    succeeded: bool,
    output: String,
}

impl Run {
    fn start(role: &str, size: usize) -> Self {
        let files = files();
        let mut launcher = Command::new("mpirun")
            .args([
                "--allow-run-as-root",
                "--oversubscribe",
                "-n",
                &size.to_string(),
            ])
            .arg(env::current_exe().unwrap())
            .args(["--exact", "a_rank", "--nocapture"])
            .env(ROLE, role)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("mpirun can be started (Debian: openmpi-bin)");
        let lines = BufReader::new(launcher.stdout.as_mut().unwrap()).lines();
        // The test harness begins these lines.
        let place = |line: String| {
            let (place, number) = line.split_once(" is process ")?;
            let (rank, _) = place.rsplit_once("rank ")?.1.split_once(" of ")?;
            Some((rank.parse::<usize>().ok()?, number.parse().ok()?))
        };
        let places = lines.map_while(Result::ok).filter_map(place).take(size);
        let processes = BTreeMap::from_iter(places).into_values();
        let processes: Vec<u32> = processes.collect();
        assert_eq!(processes.len(), size);
        Self {
            launcher,
            processes,
            files,
        }
    }

    /// Waits until all processes have ended, but no longer than so, and looks whether anything is left of them.
    fn end(mut self, longest: Duration) -> End {
        let started = Instant::now();
        // One that has ended has no program any more, even if the launcher has not asked for its exit code yet.
        let is_alive = |number: &&u32| fs::read_link(format!("/proc/{number}/exe")).is_ok();
        while self.processes.iter().any(|number| is_alive(&number)) {
            if started.elapsed() > longest {
                let left: Vec<_> = self.processes.iter().filter(is_alive).collect();
                let _ = self.launcher.kill();
                panic!("processes {left:?} have not ended within {longest:?}");
            }
            thread::sleep(Duration::from_millis(5));
        }
        let mut output = String::new();
        self.launcher
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut output)
            .unwrap();
        let succeeded = self.launcher.wait().unwrap().success();
        let left: Vec<_> = files().difference(&self.files).cloned().collect();
        assert!(left.is_empty(), "{left:?}");
        End { succeeded, output }
    }
}

/// What Open MPI keeps in shared memory and in the folder of temporary files.
fn files() -> BTreeSet<PathBuf> {
    let folders = [PathBuf::from("/dev/shm"), env::temp_dir()];
    let entries = folders
        .iter()
        .flat_map(|folder| fs::read_dir(folder).into_iter().flatten());
    let paths = entries.map(|entry| entry.unwrap().path());
    let sessions = |path: PathBuf| match path.to_string_lossy().contains("ompi.") {
        true => fs::read_dir(path)
            .into_iter()
            .flatten()
            .map(|entry| entry.unwrap().path())
            .collect(),
        false => vec![path],
    };
    let is_ours = |path: &PathBuf| {
        let path = path.to_string_lossy();
        path.starts_with("/dev/shm") || path.contains("ompi.")
    };
    paths.flat_map(sessions).filter(is_ours).collect()
}

impl End {
    /// How many ranks have said this.
    fn told(&self, sentence: &str) -> usize {
        self.output.matches(&format!("error: {sentence}")).count()
    }
}

#[test]
fn every_operation_gives_what_a_single_rank_computes() {
    let _alone = alone();
    for role in ["programs", "a message without a receiver"] {
        for size in SIZES {
            let end = Run::start(role, size).end(Duration::from_secs(120));
            assert!(end.succeeded, "{role} on {size}: {}", end.output);
        }
    }
}

#[test]
fn a_failure_ends_all_ranks_with_the_same_sentence() {
    let _alone = alone();
    for (number, failing) in failures::ALL.into_iter().enumerate() {
        let size = SIZES[number % SIZES.len()];
        let end = Run::start(failing.name, size).end(Duration::from_secs(20));
        let sentence = (failing.sentence)(size);
        assert!(!end.succeeded);
        assert_eq!(
            end.told(&sentence),
            size,
            "{}: {}",
            failing.name,
            end.output
        );
    }
}

#[test]
fn a_killed_process_ends_the_others_with_its_name() {
    let _alone = alone();
    let seed = process::id() as usize;
    for round in 0..10 {
        let role = ["works for ever", "computes for ever"][round % 2];
        let size = SIZES[round % SIZES.len()];
        let run = Run::start(role, size);
        thread::sleep(Duration::from_millis(
            (seed * (round + 1) * 37 % 400) as u64,
        ));
        let killed = (seed + round) % size;
        let number = run.processes[killed].to_string();
        let kill = Command::new("kill").args(["-9", &number]).status();
        assert!(kill.unwrap().success());
        let end = run.end(AFTERWARDS);
        assert!(!end.succeeded);
        let doing = match role {
            "works for ever" => format!("rank {killed} (layer "),
            _ => format!("rank {killed} (a long product of rank {killed}) died: its process ended"),
        };
        assert_eq!(
            end.told(&doing),
            size - 1,
            "{role} on {size}: {}",
            end.output
        );
    }
}
