//! Ranks as threads: operations against a single rank's results, and failures.

mod common;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::{Words, failures, program};
use firebox_comm::{Cause, CommError, Operation, Options, threads};
use proptest::prelude::*;

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
    for failing in failures::ALL {
        for size in [2, 3, 8] {
            let ends = Arc::new(Mutex::new(Vec::new()));
            let options = Options {
                deadline: failures::DEADLINE,
                ..Options::default()
            };
            let started = Instant::now();
            let seen = Arc::clone(&ends);
            let run = threads::run(size, &options, move |comm| {
                let result = (failing.body)(&comm);
                let mut seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
                seen.extend(result.as_ref().err().cloned());
                result.map_err(Words)
            });
            let (name, sentence) = (failing.name, (failing.sentence)(size));
            let error = run.unwrap_err();
            assert!(error.to_string().starts_with(&sentence), "{name}: {error}");
            assert!(started.elapsed() < Duration::from_secs(20), "{name}");
            let ends = ends.lock().unwrap();
            let told = ends.iter().filter(|end| end.contains(&sentence)).count();
            assert!(told >= size - 1, "{name}: {ends:?}");
        }
    }
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
            std::thread::sleep(Duration::from_secs(3600));
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

#[test]
fn functions_without_errors_unwind_in_silence() {
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
