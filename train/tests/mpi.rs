//! Training by processes under MPI, as a user runs it: the bits of threads, and runs whose ranks are killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

/// How long the others may live when one has been killed: two seconds, and the time that a busy machine takes.
const AFTERWARDS: Duration = Duration::from_secs(5);

const CONFIG: &str = r#"
[model]
layers = 2
d_model = 32
heads = 2
context_length = 32
[model.experts]
count = 4
top_k = 2
d_ff = 32
[tokenizer]
kind = "bytes"
[data]
cache = 'FOLDER/cache'
[data.validation]
by = "tail"
fraction = 0.2
[[data.source]]
name = "text"
files = ['FOLDER/text.txt']
epochs = 100
[train]
steps = 40
micro_batch = 2
log_every = 1
validate_every = 10
validation_tokens = 512
[optimizer]
learning_rate = 1e-2
muon = "all"
muon_momentum = 0.9
expert_interval = 3
[schedule]
warmup_steps = 2
batch_tokens = 192
[checkpoint]
every = 1
keep_last = 100
"#;

/// A configuration and its text.
struct Test(TempDir);

impl Test {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let lines = (0..400).map(|line| format!("{line} boilers stand beside {}.\n", line * 7));
        fs::write(folder.path().join("text.txt"), lines.collect::<String>()).unwrap();
        let config = CONFIG.replace("FOLDER", folder.path().to_str().unwrap());
        fs::write(folder.path().join("run.toml"), config).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A run, as so many processes under `mpirun`, or as one without it.
    fn start(&self, processes: usize, out: &str, arguments: &[&str]) -> Child {
        let binary = env!("CARGO_BIN_EXE_firebox-train");
        let mut run = match processes {
            1 => Command::new(binary),
            _ => {
                let mut mpirun = Command::new("mpirun");
                let count = processes.to_string();
                mpirun.args(["--allow-run-as-root", "--oversubscribe", "-n", &count]);
                mpirun.arg(binary);
                mpirun
            }
        };
        run.arg("run").arg(self.path("run.toml"));
        run.arg("--out").arg(self.path(out)).args(arguments);
        run.env_remove("RUST_LOG")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        run.spawn().expect("it starts (Debian: openmpi-bin)")
    }

    /// The exit code, standard output and standard error of a run.
    fn run(
        &self,
        processes: usize,
        out: &str,
        arguments: &[&str],
    ) -> (Option<i32>, String, String) {
        ended(self.start(processes, out, arguments))
    }

    /// The files of a checkpoint that say what a run has come to.
    fn bytes(&self, out: &str, step: u64) -> [Vec<u8>; 2] {
        let folder = self.path(out).join(format!("checkpoints/step-{step:07}"));
        ["model.safetensors", "train_state.safetensors"]
            .map(|file| fs::read(folder.join(file)).expect("a file of a checkpoint"))
    }
}

fn ended(run: Child) -> (Option<i32>, String, String) {
    let output = run.wait_with_output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (
        output.status.code(),
        text(output.stdout),
        text(output.stderr),
    )
}

#[test]
fn processes_give_the_bits_of_threads() {
    let test = Test::new();
    let layouts: [(usize, &[&str]); 5] = [
        (2, &["--data", "2"]),
        (4, &["--data", "4"]),
        (2, &["--expert", "2"]),
        (4, &["--data", "2", "--expert", "2"]),
        (4, &["--data", "2", "--tensor", "2"]),
    ];
    for (number, (ranks, layout)) in layouts.into_iter().enumerate() {
        let arguments = [layout, &["--set", "train.steps=6"]].concat();
        let [threads, processes] = [1, ranks].map(|processes| {
            let out = format!("{number}-{processes}");
            let (code, stdout, stderr) = test.run(processes, &out, &arguments);
            assert_eq!(code, Some(0), "{stderr}");
            // One rank tells of the run.
            assert_eq!(stdout.matches("checkpoint:").count(), 1, "{stdout}");
            assert_eq!(stderr.matches("step      6  loss").count(), 1, "{stderr}");
            test.bytes(&out, 6)
        });
        assert!(threads == processes, "{layout:?}");
    }
}

#[test]
fn what_is_wrong_is_told_once_with_its_exit_code() {
    let test = Test::new();
    let refused = |processes: usize, arguments: &[&str]| {
        let (code, stdout, stderr) = test.run(processes, "refused", arguments);
        assert_eq!((code, stdout.as_str()), (Some(2), ""), "{stderr}");
        assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
        stderr
    };
    let said = refused(2, &["--data", "3"]);
    assert!(
        said.contains("--data 3 makes 3 ranks, and the launcher has started 2 processes"),
        "{said}"
    );
    let said = refused(2, &["--data", "2", "--set", "schedule.batch_tokens=32"]);
    assert!(
        said.contains("run.toml: --data 2: the batch of step 1 has 1 sequence, fewer"),
        "{said}"
    );
    assert_eq!(said.matches("hint: ").count(), 1, "{said}");
    let said = refused(2, &["--data", "none"]);
    assert!(said.contains("invalid value 'none'"), "{said}");
}

#[test]
fn processes_that_see_different_folders_are_refused() {
    let test = Test::new();
    let [here, there] = ["here", "there"].map(|name| {
        let folder = test.path(name);
        fs::create_dir(&folder).unwrap();
        folder
    });
    // A run of two ranks in one folder, of which the other one knows nothing.
    let run = |folders: [&Path; 2]| {
        let mut mpirun = Command::new("mpirun");
        mpirun.args(["--allow-run-as-root", "--oversubscribe"]);
        for (number, folder) in folders.into_iter().enumerate() {
            mpirun.args((number > 0).then_some(":"));
            mpirun.args(["-n", "1", "-wdir"]).arg(folder);
            mpirun.arg(env!("CARGO_BIN_EXE_firebox-train")).arg("run");
            mpirun.arg(test.path("run.toml"));
            mpirun.args([
                "--data",
                "2",
                "--out",
                "r",
                "--resume=auto",
                "--set",
                "train.steps=4",
            ]);
        }
        mpirun.env_remove("RUST_LOG");
        ended(
            mpirun
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap(),
        )
    };
    let (code, _, stderr) = run([&here, &here]);
    assert_eq!(code, Some(0), "{stderr}");
    let (code, _, stderr) = run([&here, &there]);
    assert_eq!(code, Some(2), "{stderr}");
    assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
    let said = "r has another newest checkpoint here than the first rank sees";
    assert!(stderr.contains(said), "{stderr}");
    assert!(!there.join("r").exists());
}

#[test]
fn a_run_goes_on_after_ranks_are_killed() {
    const RANKS: usize = 4;
    let test = Test::new();
    let arguments = ["--data", "2", "--expert", "2", "--resume=auto"];
    let (code, _, stderr) = test.run(RANKS, "whole", &arguments);
    assert_eq!(code, Some(0), "{stderr}");
    // Each time another rank, some steps after the checkpoint that is there.
    let killed = test.path("killed");
    for number in 0..10 {
        let before = newest(&killed);
        let run = test.start(RANKS, "killed", &arguments);
        let started = Instant::now();
        while newest(&killed) < before + 1 + number % 3 {
            assert!(started.elapsed() < Duration::from_secs(60), "no progress");
            thread::sleep(Duration::from_millis(1));
        }
        let rank = number as usize % RANKS;
        let process = process_of(rank, &run).to_string();
        let status = Command::new("kill").args(["-KILL", &process]).status();
        assert!(status.unwrap().success());
        let started = Instant::now();
        let (code, _, stderr) = ended(run);
        assert!(started.elapsed() < AFTERWARDS, "{stderr}");
        assert_ne!(code, Some(0), "{stderr}");
        assert_eq!(stderr.matches("error: ").count(), 1, "{stderr}");
        assert!(
            stderr.contains(&format!("error: rank {rank} (step ")),
            "{stderr}"
        );
        assert!(stderr.contains(" was killed: "), "{stderr}");
    }
    let (code, _, stderr) = test.run(RANKS, "killed", &arguments);
    assert_eq!(code, Some(0), "{stderr}");
    assert!(test.bytes("killed", 40) == test.bytes("whole", 40));
}

/// The step of a run's newest checkpoint; 0 where there is none.
fn newest(run: &Path) -> u64 {
    let entries = fs::read_dir(run.join("checkpoints"));
    let names = entries.into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let steps = names.filter_map(|name| name.strip_prefix("step-")?.parse().ok());
    steps.max().unwrap_or(0)
}

/// The number of the process that is a rank of a run of `mpirun`.
fn process_of(rank: usize, run: &Child) -> u32 {
    let launcher = run.id();
    let children = fs::read_to_string(format!("/proc/{launcher}/task/{launcher}/children"));
    let variable = format!("PMIX_RANK={rank}");
    let children = children.unwrap();
    let numbers = children
        .split_whitespace()
        .map(|number| number.parse::<u32>().unwrap());
    let is_rank = |number: &u32| {
        let variables = fs::read(format!("/proc/{number}/environ")).unwrap_or_default();
        variables
            .split(|byte| *byte == 0)
            .any(|found| found == variable.as_bytes())
    };
    let mut found = numbers.filter(is_rank);
    found.next().expect("Open MPI tells a process its rank")
}
