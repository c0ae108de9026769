//! Ways in which a rank fails while the others work, and the sentence by which all are to end.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use firebox_comm::{Comm, CommError};

/// The deadline of operations where ranks hang: more than the others can be delayed by on a busy machine.
pub const DEADLINE: Duration = Duration::from_millis(1500);

/// What a run does, and the beginning of the sentence that names the rank that fails: always the last one.
pub struct Failing {
    pub name: &'static str,
    /// What each rank does.
    pub body: fn(&Arc<dyn Comm>) -> Result<(), String>,
    /// For so many ranks.
    pub sentence: fn(usize) -> String,
}

/// All ways.
pub const ALL: [Failing; 7] = [
    Failing {
        name: "panics",
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
        body: |comm| in_last(comm, || Err("cannot read its slice".to_owned())),
        sentence: |size| {
            format!(
                "rank {} (layer 7 of 120) failed: cannot read its slice",
                size - 1
            )
        },
    },
    Failing {
        name: "aborts",
        body: |comm| {
            in_last(comm, || {
                comm.abort("the loss is not finite");
                comm.barrier().map_err(|error| error.to_string())
            })
        },
        sentence: |size| {
            format!(
                "rank {} (layer 7 of 120) gave up: the loss is not finite",
                size - 1
            )
        },
    },
    Failing {
        name: "hangs",
        body: |comm| {
            in_last(comm, || {
                loop {
                    thread::sleep(Duration::from_secs(3600));
                }
            })
        },
        sentence: |size| {
            format!(
                "rank {} (layer 7 of 120) did not answer within 1.5s: rank ",
                size - 1
            )
        },
    },
    Failing {
        name: "ends early",
        body: |comm| in_last(comm, || Ok(())),
        sentence: |size| format!("rank {} (layer 7 of 120) had ended when rank ", size - 1),
    },
    Failing {
        name: "calls another operation",
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
        name: "names no rank",
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
