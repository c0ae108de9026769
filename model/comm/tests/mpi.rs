//! Ranks as processes: the same operations and failures as on threads, and processes that are killed.
//!
//! The tests start `mpirun` with this very program, which runs the test [`a_rank`] alone in every process.

mod common;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{self, Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use common::{Words, failures, pipeline, program};
use firebox_comm::mpi::{self, World};
use firebox_comm::{Comm, CommError, Options, RunError};
use tempfile::TempDir;

/// What a process is to do as a rank.
const ROLE: &str = "FIREBOX_COMM_TEST_ROLE";

/// Numbers of processes.
const SIZES: [usize; 4] = [2, 3, 4, 8];

/// Seeds of programs.
const SEEDS: u64 = 12;

/// How long a run may take, without the start: less than the deadline of those that do not hang.
const LIMIT: Duration = Duration::from_secs(50);

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
    let mut all = failures::ALL.iter();
    let failing = all.find(|failing| failing.name == role);
    let deadline = match (failing, role.as_str()) {
        (Some(failing), _) => failing.deadline,
        (None, "passes a pipeline") => failures::DEADLINE,
        (None, _) => Options::default().deadline,
    };
    let options = Options {
        deadline,
        ..Options::default()
    };
    let body = move |comm: Arc<dyn Comm>| {
        let is_at_work = || {
            let (rank, size) = (comm.rank(), comm.size());
            println!("rank {rank} of {size} is process {}", process::id());
        };
        match failing {
            Some(failing) => {
                is_at_work();
                (failing.body)(&comm)
            }
            None => play(&role, &comm, is_at_work).map_err(|error| error.to_string()),
        }
    };
    let body = move |comm| body(comm).map_err(Words);
    if world.run(&options, body, report).is_err() {
        process::exit(3);
    }
}

/// What a rank does in a role that no failure has.
fn play(role: &str, comm: &Arc<dyn Comm>, is_at_work: impl FnOnce()) -> Result<(), CommError> {
    let rank = comm.rank();
    match role {
        "computes for ever" => comm.doing(format_args!("a long product of rank {rank}")),
        "waits for ever" => comm.doing(format_args!("a long wait of rank {rank}")),
        _ => comm.doing(format_args!("layer 0 of rank {rank}")),
    }
    // A rank that is killed is to have said what it does.
    is_at_work();
    match role {
        "programs" => {
            (0..SEEDS).try_for_each(|seed| program::run(comm, seed))?;
            program::long_sum(comm)
        }
        "a message without a receiver" => comm.send(0, &[7; 1 << 20]),
        "passes a pipeline" => {
            pipeline::pass_through(comm, |_| thread::sleep(pipeline::work(comm.size())))
        }
        "works for ever" => forever(comm),
        "waits for ever" => comm.wait((rank + 1) % comm.size()).map(|_| ()),
        "computes for ever" => loop {
            thread::sleep(Duration::from_secs(3600));
        },
        role => panic!("there is no role {role}"),
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
    /// Where Open MPI keeps its files, those of shared memory too.
    files: TempDir,
}

/// How a run has ended.
struct End {
    succeeded: bool,
    output: String,
}

impl Run {
    /// Starts ranks, and waits until all of them are at work.
    fn start(role: &str, size: usize) -> Self {
        let files = tempfile::tempdir().unwrap();
        let mut launcher = Command::new("mpirun")
            .args(["--allow-run-as-root", "--oversubscribe"])
            .args(["-n", &size.to_string()])
            .arg(env::current_exe().unwrap())
            .args(["--exact", "a_rank", "--nocapture"])
            .env(ROLE, role)
            .env("TMPDIR", files.path())
            .env("OMPI_MCA_btl_vader_backing_directory", files.path())
            .env("OMPI_MCA_osc_sm_backing_directory", files.path())
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

    /// Waits until all processes have ended, but no longer than so, and checks that no file of theirs is left.
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
        let left = files_in(self.files.path());
        assert!(left.is_empty(), "{left:?}");
        End { succeeded, output }
    }
}

/// The files in a folder and in the folders below.
fn files_in(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap();
    let paths = entries.map(|entry| entry.unwrap().path());
    let files = |path: PathBuf| match path.is_dir() {
        true => files_in(&path),
        false => vec![path],
    };
    paths.flat_map(files).collect()
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
            let end = Run::start(role, size).end(Duration::from_secs(300));
            assert!(end.succeeded, "{role} on {size}: {}", end.output);
        }
    }
}

#[test]
fn a_failure_ends_all_ranks_with_the_same_sentence() {
    let _alone = alone();
    for (number, failing) in failures::ALL.iter().enumerate() {
        let size = SIZES[number % SIZES.len()];
        let end = Run::start(failing.name, size).end(LIMIT);
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
fn a_rank_waits_for_a_pipeline_that_makes_progress() {
    let _alone = alone();
    let started = Instant::now();
    let end = Run::start("passes a pipeline", 4).end(LIMIT);
    assert!(end.succeeded, "{}", end.output);
    assert!(started.elapsed() >= 2 * failures::DEADLINE);
}

#[test]
fn a_killed_process_ends_the_others_with_its_name() {
    let _alone = alone();
    let seed = process::id() as usize;
    for round in 0..12 {
        let role = ["works for ever", "computes for ever", "waits for ever"][round % 3];
        let size = SIZES[round % SIZES.len()];
        let run = Run::start(role, size);
        thread::sleep(Duration::from_millis(
            (seed * (round + 1) * 37 % 400) as u64,
        ));
        let killed = (seed + round) % size;
        let number = run.processes[killed].to_string();
        let kill = Command::new("kill").args(["-9", &number]).status();
        assert!(kill.unwrap().success());
        let end = run.end(LIMIT);
        assert!(!end.succeeded);
        let doing = match role {
            "works for ever" => format!("rank {killed} (layer "),
            "waits for ever" => {
                format!(
                    "rank {killed} (a long wait of rank {killed}) was killed: its process exited"
                )
            }
            _ => format!(
                "rank {killed} (a long product of rank {killed}) was killed: its process exited"
            ),
        };
        assert_eq!(
            end.told(&doing),
            size - 1,
            "{role} on {size}: {}",
            end.output
        );
    }
}
