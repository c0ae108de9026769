use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use firebox_console::advice::{Advice, Advise};

use super::*;
use crate::{CommError, Failure, Operation};

/// Runs so many ranks, with a short deadline.
fn failure<T: Send + 'static>(
    size: usize,
    body: impl Fn(Arc<dyn Comm>) -> Result<T, CommError> + Send + Sync + 'static,
) -> Failure {
    let options = Options {
        deadline: Duration::from_secs(3),
        ..Options::default()
    };
    let started = Instant::now();
    let error = run(size, &options, body).map(|_| ()).unwrap_err();
    assert!(started.elapsed() < Duration::from_secs(50));
    error.failure
}

#[test]
fn a_rank_has_a_pool_of_its_own() {
    let options = Options {
        threads: 3,
        ..Options::default()
    };
    let names = run(2, &options, |_| {
        let names = rayon::broadcast(|_| thread::current().name().unwrap_or_default().to_owned());
        Ok::<_, CommError>(names)
    });
    let expected = [0, 1].map(|rank| [0, 1, 2].map(|thread| format!("rank-{rank}.{thread}")));
    assert_eq!(names.unwrap(), expected);
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("no such file")]
struct Missing;

impl Advise for Missing {
    fn advice(&self) -> Advice {
        Advice::USAGE.hint("look")
    }
}

#[test]
fn the_error_of_a_rank_is_given_back_and_what_follows_from_it_is_not() {
    let result = run(4, &Options::default(), |comm| {
        comm.doing(format_args!("reading its slices"));
        if comm.rank() == 2 {
            return Err(Missing);
        }
        comm.barrier().map_err(|_| Missing)
    });
    let error = result.unwrap_err();
    assert_eq!(
        error.to_string(),
        "rank 2 (reading its slices) failed: no such file"
    );
    assert_eq!(error.error, Some(Missing));
    let advice = error.failure.advice();
    assert_eq!(
        (advice.exit_code, advice.hint.as_deref()),
        (2, Some("look"))
    );
}

#[test]
fn a_message_that_comes_when_it_comes_is_waited_for_beyond_the_deadline() {
    let options = Options {
        deadline: Duration::from_millis(20),
        ..Options::default()
    };
    let waited = run(2, &options, |comm| match comm.rank() {
        0 => {
            thread::sleep(Duration::from_millis(200));
            comm.send(1, &[7])?;
            Ok(Vec::new())
        }
        _ => comm.wait(0),
    });
    assert_eq!(waited.unwrap()[1], [7]);
    let failure = failure(2, |comm| match comm.rank() {
        0 => panic!("no more"),
        _ => comm.wait(0),
    });
    assert_eq!(failure.to_string(), "rank 0 panicked: no more");
}

#[test]
fn a_rank_that_never_returns_is_left_behind() {
    let failure = failure(3, |comm| {
        comm.doing(format_args!("layer {}", comm.rank()));
        if comm.rank() == 1 {
            loop {
                thread::sleep(Duration::from_secs(3600));
            }
        }
        comm.barrier()
    });
    assert_eq!((failure.rank, failure.doing.as_str()), (1, "layer 1"));
    assert!(
        matches!(
            failure.cause,
            Cause::Late {
                operation: Operation::Barrier,
                waiter: 0 | 2,
                ..
            }
        ),
        "{failure}"
    );
}

#[test]
fn an_operation_that_is_called_twice_at_once_is_refused() {
    let failure = failure(2, |comm| {
        if comm.rank() == 1 {
            return comm.barrier();
        }
        thread::scope(|scope| {
            let first = scope.spawn(|| comm.all_gather(b"one"));
            let second = scope.spawn(|| comm.all_gather(b"two"));
            let _ = first.join().unwrap()?;
            second.join().unwrap().map(|_| ())
        })
    });
    // Or rank 1, whose barrier fits neither, if it comes between the two.
    assert!(matches!(failure.cause, Cause::Misuse(_)), "{failure}");
}

#[test]
fn ranks_divide_a_vector_alike() {
    let failure = failure(3, |comm| {
        let ends = [usize::from(comm.rank() != 2), 1, 2];
        comm.reduce_scatter_sum(&mut [1.0, 2.0], &ends)
    });
    assert_eq!(
        failure.to_string(),
        "rank 2 divided a reduce-scatter of 2 values otherwise than rank 0"
    );
}
