//! Ranks as threads: operations against a single rank's results, and failures.

mod common;

use std::env;
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::failures::{self, Failing};
use common::{Words, pipeline, program};
use firebox_comm::{Cause, CommError, Operation, Options, threads};
use proptest::prelude::*;

/// How long a run that fails may take: less than any deadline but those that are to be over.
const LIMIT: Duration = Duration::from_secs(50);

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_operation_gives_what_a_single_rank_computes(size in 1_usize..=9, seed: u64) {
        let run = threads::run(size, &Options::default(), move |comm| program::run(&comm, seed));
        prop_assert!(run.is_ok(), "{}", run.unwrap_err());
    }
}

#[test]
fn a_long_vector_is_summed_in_the_order_of_the_ranks() {
    for size in [1, 2, 5] {
        let run = threads::run(size, &Options::default(), |comm| program::long_sum(&comm));
        run.unwrap();
    }
}

#[test]
fn a_failure_ends_all_ranks_with_the_same_sentence() {
    thread::scope(|scope| {
        for failing in &failures::ALL {
            for size in [2, 3, 8] {
                scope.spawn(move || fails_as_told(failing, size));
            }
        }
    });
}

fn fails_as_told(failing: &Failing, size: usize) {
    let (name, sentence) = (failing.name, (failing.sentence)(size));
    let options = Options {
        deadline: failing.deadline,
        ..Options::default()
    };
    let (sender, ends) = mpsc::channel();
    let (started, body) = (Instant::now(), failing.body);
    let run = threads::run(size, &options, move |comm| {
        let result = body(&comm);
        if let Err(end) = &result {
            // The test does not wait for the rank that fails.
            let _ = sender.send(end.clone());
        }
        result.map_err(Words)
    });
    let error = run.unwrap_err();
    assert!(error.to_string().starts_with(&sentence), "{name}: {error}");
    assert!(started.elapsed() < LIMIT, "{name}");
    // All but the rank that fails, also those that were too busy to notice before the run ended.
    let mut told = 0;
    while told < size - 1 {
        let end = ends.recv_timeout(LIMIT);
        let end = end.unwrap_or_else(|_| panic!("{name}: only {told} ranks have noticed"));
        told += usize::from(end.contains(&sentence));
    }
}

#[test]
fn a_rank_waits_for_a_pipeline_that_makes_progress() {
    let options = Options {
        deadline: failures::DEADLINE,
        ..Options::default()
    };
    let started = Instant::now();
    let run = threads::run(4, &options, |comm| {
        pipeline::pass_through(&comm, |_| thread::sleep(pipeline::work(comm.size())))
    });
    run.unwrap();
    assert!(started.elapsed() >= 2 * failures::DEADLINE);
}

#[test]
fn the_rank_at_the_root_of_a_chain_of_waiting_ranks_is_named() {
    let options = Options {
        deadline: failures::DEADLINE,
        ..Options::default()
    };
    let run = threads::run(5, &options, |comm| {
        comm.doing(format_args!("stage {}", comm.rank()));
        if comm.rank() == 0 {
            thread::sleep(Duration::from_secs(3600));
        }
        comm.recv(comm.rank() - 1).map(|_| ())
    });
    let failure = run.unwrap_err().failure;
    assert_eq!((failure.rank, failure.doing.as_str()), (0, "stage 0"));
}

#[test]
fn ranks_that_wait_for_each_other_are_told_so() {
    let options = Options {
        deadline: failures::DEADLINE,
        ..Options::default()
    };
    let run = threads::run(2, &options, |comm| comm.recv(1 - comm.rank()).map(|_| ()));
    let cause = run.unwrap_err().failure.cause;
    let is_deadlock = matches!(
        cause,
        Cause::Deadlock {
            operation: Operation::Recv,
            ..
        }
    );
    assert!(is_deadlock, "{cause}");
}

/// Set in the process whose messages are looked at.
const SILENT: &str = "FIREBOX_COMM_TEST_SILENT";

#[test]
fn functions_without_errors_unwind_in_silence() {
    if env::var_os(SILENT).is_none() {
        let test = "functions_without_errors_unwind_in_silence";
        let mut process = Command::new(env::current_exe().unwrap());
        process.args(["--exact", test, "--nocapture"]);
        let output = process.env(SILENT, "1").output().unwrap();
        assert!(output.status.success());
        assert_eq!(String::from_utf8_lossy(&output.stderr), "");
        return;
    }
    let run = threads::run(3, &Options::default(), |comm| {
        if comm.rank() == 1 {
            return Err(Words("no such file".to_owned()));
        }
        comm.barrier()
            .unwrap_or_else(|error: CommError| error.unwind());
        Ok(())
    });
    assert_eq!(run.unwrap_err().to_string(), "rank 1 failed: no such file");
}

#[test]
fn many_more_ranks_than_cores_work_in_groups() {
    let run = threads::run(128, &Options::default(), |comm| {
        let row = comm.split(comm.rank() / 8)?;
        let column = comm.split(comm.rank() % 8)?;
        let mut sum = vec![1.0; 1_000];
        for _ in 0..5 {
            row.all_reduce_sum(&mut sum)?;
            column.all_reduce_sum(&mut sum)?;
            sum.iter_mut().for_each(|value| *value /= 128.0);
        }
        Ok::<_, CommError>(sum)
    });
    assert_eq!(run.unwrap(), vec![vec![1.0; 1_000]; 128]);
}
