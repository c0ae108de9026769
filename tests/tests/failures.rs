//! A device that fails in the middle of a run ends it in a sentence, and leaves the checkpoints as they are.

use std::fs;

use firebox_tests::binaries;
use firebox_tests::runs::TestRun;

/// Limits the address space of a process that computes on the CPU, and gives it a batch that does not fit.
#[cfg(target_os = "linux")]
#[test]
fn memory_of_the_host_that_ends_is_a_sentence() {
    use std::process::Command;

    let test = TestRun::new();
    let (config, out) = (test.argument("run.toml"), test.argument("run"));
    let run = ["run", &config, "--out", &out, "--device", "flex"];
    let more = [
        "--set",
        "train.steps=4",
        "--set",
        "data.source.0.epochs=200",
    ];
    let first = binaries::train(&[&run[..], &more].concat())
        .output()
        .expect("the binary starts");
    assert!(first.status.success(), "{first:?}");
    fs::remove_dir_all(test.path("run")).expect("a run");

    // A batch of 60,000 sequences through two layers at once takes over 6 GB. The matrix product alone reserves
    // addresses for every thread, up to 1 GB each on processors with large caches.
    let large = [
        "--set",
        "train.micro_batch=100000",
        "--set",
        "schedule.batch_tokens=1920000",
        "--threads",
        "2",
    ];
    let train = binaries::train(&[&run[..], &more, &large].concat());
    let mut limited = Command::new("sh");
    limited
        .args(["-c", "ulimit -v 6000000; exec \"$0\" \"$@\""])
        .arg(train.get_program())
        .args(train.get_args())
        .current_dir(binaries::workspace());
    let output = limited.output().expect("a shell");
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for word in [
        "error: step 1: flex ran out of memory: ",
        "hint: lower train.micro_batch",
    ] {
        assert!(text.contains(word), "no {word:?} in {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
}

#[cfg(feature = "wgpu")]
#[test]
fn a_buffer_that_does_not_fit_is_a_sentence_and_the_checkpoint_stays() {
    let test = TestRun::new();
    let out = test.argument("run");
    let config = test.argument("run.toml");
    let run = |set: &[&str], resume: bool| {
        let mut arguments = vec!["run", &config, "--out", &out, "--device", "wgpu"];
        let more = [
            "train.steps=4",
            "data.source.0.epochs=200",
            // From two sequences to more than any adapter takes at once.
            "schedule.batch_tokens={ start = 64, end = 6000000, ramp_steps = 3 }",
            "checkpoint.every=1",
        ];
        arguments.extend(more.iter().chain(set).flat_map(|set| ["--set", set]));
        arguments.extend(resume.then_some("--resume"));
        binaries::train(&arguments)
            .output()
            .expect("the binary starts")
    };
    let output = run(&["train.micro_batch=1000000"], false);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    for word in [
        "error: step 2: wgpu ran out of memory: ",
        "hint: lower train.micro_batch",
        "--resume continues after step 1",
    ] {
        assert!(text.contains(word), "no {word:?} in {text}");
    }
    assert!(!text.contains("panicked"), "{text}");
    assert_eq!(text.matches("error: ").count(), 1, "{text}");
    let checkpoints = fs::read_dir(test.path("run/checkpoints")).expect("a folder");
    assert_eq!(checkpoints.count(), 2, "step-0000001 and latest");
}
