//! Ways in which a rank fails while the others work, and the sentence by which all are to end.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use firebox_comm::{Comm, CommError};

use super::pipeline;

/// The deadline where ranks hang: which one is named must not depend on delays of a second, as on a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(3);

/// The deadline where something else is to be noticed.
const LONG: Duration = Duration::from_secs(60);

/// What a run does, and the beginning of the sentence that names the rank that fails.
pub struct Failing {
    pub name: &'static str,
    /// Of operations.
    pub deadline: Duration,
    /// What each rank does.
    pub body: fn(&Arc<dyn Comm>) -> Result<(), String>,
    /// For so many ranks.
    pub sentence: fn(usize) -> String,
}

/// All ways.
pub const ALL: [Failing; 12] = [
    Failing {
        name: "panics",
        deadline: LONG,
        body: |comm| in_last(comm, || panic!("no room for {} bytes", 5)),
        sentence: |size| {
            format!(
                "rank {} (layer 7 of 120) panicked: no room for 5 bytes",
                size - 1
            )
        },
    },
    Failing {
        name: "returns an error",
        deadline: LONG,
        body: |comm| in_last(comm, || Err("cannot read its slice".to_owned())),
        sentence: |size| {
            format!(
                "rank {} (layer 7 of 120) failed: cannot read its slice",
                size - 1
            )
        },
    },
    Failing {
        name: "hangs",
        deadline: DEADLINE,
        body: |comm| in_last(comm, || hang()),
        sentence: |size| {
            let rank = size - 1;
            format!("rank {rank} (layer 7 of 120) did not answer within {DEADLINE:?}: rank ")
        },
    },
    Failing {
        name: "hangs at the end of a pipeline",
        deadline: DEADLINE,
        body: |comm| {
            pipeline::pass_through(comm, |rank| {
                comm.doing(format_args!("layer {} of 120", 8 + rank - comm.size()));
                match is_last(comm) {
                    true => hang(),
                    false => thread::sleep(pipeline::work(comm.size())),
                }
            })
            .and_then(|()| comm.barrier())
            .map_err(|error| error.to_string())
        },
        sentence: |size| {
            let rank = size - 1;
            format!("rank {rank} (layer 7 of 120) did not answer within {DEADLINE:?}: rank ")
        },
    },
    Failing {
        name: "waits for one that waits for it",
        deadline: DEADLINE,
        body: |comm| {
            comm.doing(format_args!("layer 7 of 120"));
            let (rank, last) = (comm.rank(), comm.size() - 1);
            let end = match rank + 1 >= last {
                true => comm.recv(2 * last - 1 - rank).map(|_| ()),
                false => comm.barrier(),
            };
            end.map_err(|error| error.to_string())
        },
        sentence: |size| {
            let (rank, other) = (size - 2, size - 1);
            format!(
                "rank {rank} (layer 7 of 120) is in a deadlock: it waited {DEADLINE:?} in a receive for rank {other}, which"
            )
        },
    },
    Failing {
        name: "comes too late",
        deadline: DEADLINE,
        body: |comm| {
            comm.barrier().map_err(|error| error.to_string())?;
            comm.doing(format_args!("layer 7 of 120"));
            // The deadline is one for the whole operation: it is over although every rank comes soon after another.
            let thirds = match comm.rank() {
                0 => 0,
                _ if !is_last(comm) => 2,
                _ => 4,
            };
            thread::sleep(DEADLINE * thirds / 3);
            comm.barrier().map_err(|error| error.to_string())
        },
        sentence: |size| {
            let rank = size - 1;
            format!(
                "rank {rank} (layer 7 of 120) did not answer within {DEADLINE:?}: rank 0 waited for it in a barrier"
            )
        },
    },
    Failing {
        name: "finishes while others wait without a deadline",
        deadline: LONG,
        body: |comm| wait_for_last(comm, || Ok(())),
        sentence: |size| {
            format!(
                "rank {} (layer 7 of 120) had already finished when rank ",
                size - 1
            )
        },
    },
    Failing {
        name: "panics while others wait without a deadline",
        deadline: LONG,
        body: |comm| wait_for_last(comm, || panic!("no room for {} bytes", 5)),
        sentence: |size| {
            format!(
                "rank {} (layer 7 of 120) panicked: no room for 5 bytes",
                size - 1
            )
        },
    },
    Failing {
        name: "finishes early",
        deadline: LONG,
        body: |comm| in_last(comm, || Ok(())),
        sentence: |size| {
            format!(
                "rank {} (layer 7 of 120) had already finished when rank ",
                size - 1
            )
        },
    },
    Failing {
        name: "calls another operation",
        deadline: LONG,
        body: |comm| {
            let called = match is_last(comm) {
                true => comm.all_gather(b"two").map(|_| ()),
                false => comm.all_reduce_sum(&mut [1.0, 2.0]),
            };
            called
                .and_then(|()| comm.barrier())
                .map_err(|error| error.to_string())
        },
        sentence: |size| {
            let rank = size - 1;
            format!(
                "rank {rank} called an all-gather where rank 0 called an all-reduce of 2 values"
            )
        },
    },
    Failing {
        name: "sums another length",
        deadline: LONG,
        body: |comm| {
            // A short sum may go another way than a long one.
            let length = if is_last(comm) { 40_000 } else { 2 };
            comm.all_reduce_sum(&mut vec![1.0; length])
                .and_then(|()| comm.barrier())
                .map_err(|error| error.to_string())
        },
        sentence: |size| {
            let rank = size - 1;
            format!(
                "rank {rank} called an all-reduce of 40000 values where rank 0 called an all-reduce of 2 values"
            )
        },
    },
    Failing {
        name: "names no rank",
        deadline: LONG,
        body: |comm| {
            in_last(comm, || {
                comm.send(100, b"bytes").map_err(|error| error.to_string())
            })
        },
        sentence: |size| {
            let rank = size - 1;
            format!("rank {rank} (layer 7 of 120) named rank 100 of a group of {size} in a send")
        },
    },
];

fn hang() -> ! {
    loop {
        thread::sleep(Duration::from_secs(3600));
    }
}

fn is_last(comm: &Arc<dyn Comm>) -> bool {
    comm.rank() + 1 == comm.size()
}

/// The last rank fails after a while; the others work until they are stopped.
fn in_last(comm: &Arc<dyn Comm>, fail: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    // A group of two or one of which the last rank of all is no member, where there are more than two.
    let group = comm
        .split(comm.rank() / 2)
        .map_err(|error| error.to_string())?;
    if is_last(comm) {
        thread::sleep(Duration::from_millis(20));
        comm.doing(format_args!("layer {} of {}", 7, 120));
        return fail();
    }
    work(comm, &group).map_err(|error| error.to_string())
}

/// The last rank ends after a while; the others wait for a message of it, for as long as it takes.
fn wait_for_last(
    comm: &Arc<dyn Comm>,
    end: impl FnOnce() -> Result<(), String>,
) -> Result<(), String> {
    if is_last(comm) {
        thread::sleep(Duration::from_millis(20));
        comm.doing(format_args!("layer {} of {}", 7, 120));
        return end();
    }
    let message = comm.wait(comm.size() - 1);
    message.map(|_| ()).map_err(|error| error.to_string())
}

/// Works until something fails: in the small group, and with all ranks now and then.
fn work(comm: &Arc<dyn Comm>, group: &Arc<dyn Comm>) -> Result<(), CommError> {
    for step in 0.. {
        comm.doing(format_args!("step {step}"));
        let has_last = (comm.rank() / 2 + 1) * 2 >= comm.size();
        if !has_last {
            group.all_reduce_sum(&mut [1.0; 5_000])?;
        }
        if has_last || step > 100 {
            comm.barrier()?;
        }
    }
    Ok(())
}
