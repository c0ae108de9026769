//! Random programs of operations, each of which is compared with what a single rank computes from the inputs of all.

use std::ops::Range;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use firebox_comm::{Comm, CommError, Operation};

/// How many operations a program has, where it does not split.
const STEPS: u64 = 12;

/// How deep groups are split.
const DEPTH: u64 = 2;

/// Numbers that follow from a seed (SplitMix64, doi 10.1145/2714064.2660195).
struct Numbers(u64);

impl Numbers {
    /// Those of one rank in one step; or of all ranks, for what they do together.
    fn new(seed: u64, step: u64, rank: Option<usize>) -> Self {
        let rank = rank.map_or(0, |rank| rank as u64 + 1);
        Self(seed ^ step.wrapping_mul(0x1000_0001) ^ rank.wrapping_mul(0x1_0000_0001_0001))
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound as u64) as usize
    }

    /// Values of very different sizes, so that their order matters to a sum, and now and then infinities and NaN.
    fn values(&mut self, length: usize) -> Vec<f32> {
        let mut value = || match self.below(500) {
            0 => f32::NAN,
            1 => f32::INFINITY,
            2 => f32::NEG_INFINITY,
            3 => -0.0,
            _ => {
                let unit = (self.next() >> 40) as f32 / (1 << 24) as f32 - 0.5;
                unit * [1e-6, 1.0, 1e6][self.below(3)]
            }
        };
        (0..length).map(|_| value()).collect()
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        let length = self.below(most + 1) * self.below(2);
        (0..length).map(|_| self.next() as u8).collect()
    }

    /// Waits a little now and then, so that ranks come in every order.
    fn dawdle(&mut self) {
        match self.below(4) {
            0 => thread::sleep(Duration::from_micros(self.next() % 500)),
            1 => thread::yield_now(),
            _ => (),
        }
    }
}

/// The bits of values, in which all NaN are the same.
fn bits(values: &[f32]) -> Vec<u32> {
    let bits = |value: &f32| if value.is_nan() { f32::NAN } else { *value }.to_bits();
    values.iter().map(bits).collect()
}

/// The sum of vectors, in their order.
fn summed(inputs: impl Iterator<Item = Vec<f32>>) -> Vec<f32> {
    let add = |mut sum: Vec<f32>, input: Vec<f32>| {
        let pairs = sum.iter_mut().zip(input);
        pairs.for_each(|(sum, input)| *sum += input);
        sum
    };
    inputs.reduce(add).expect("a group has a rank")
}

/// Where the parts of a vector end, some of which may be empty.
fn ends(shared: &mut Numbers, ranks: usize) -> Vec<usize> {
    let most = [1, 40, 30_000][shared.below(3)];
    let mut end = 0;
    let ends = (0..ranks).map(|_| {
        end += shared.below(most);
        end
    });
    ends.collect()
}

/// A rank's part of a vector.
fn part(ends: &[usize], rank: usize) -> Range<usize> {
    rank.checked_sub(1).map_or(0, |before| ends[before])..ends[rank]
}

/// Runs the program of a seed.
///
/// # Panics
///
/// When an operation gives something else than it should.
pub fn run(comm: &Arc<dyn Comm>, seed: u64) -> Result<(), CommError> {
    let all: Vec<usize> = (0..comm.size()).collect();
    run_in(comm, &all, seed, DEPTH)
}

/// Sums vectors that are long enough for every way of doing it.
///
/// # Panics
///
/// When the sum is wrong.
pub fn long_sum(comm: &Arc<dyn Comm>) -> Result<(), CommError> {
    let value = |rank: usize, place: usize| (place % 1_009) as f32 * 0.1 + rank as f32 * 1e4;
    let length = (1 << 20) + 7;
    let mut values: Vec<f32> = (0..length).map(|place| value(comm.rank(), place)).collect();
    comm.all_reduce_sum(&mut values)?;
    for (place, sum) in values.into_iter().enumerate() {
        let inputs = (0..comm.size()).map(|rank| value(rank, place));
        assert_eq!(
            Some(sum),
            inputs.reduce(|sum, input| sum + input),
            "at {place}"
        );
    }
    Ok(())
}

/// Runs a program in the group of these ranks of the run.
fn run_in(comm: &Arc<dyn Comm>, ranks: &[usize], seed: u64, depth: u64) -> Result<(), CommError> {
    assert_eq!(comm.size(), ranks.len());
    let earlier = comm.traffic();
    let mut expected = [0; Operation::ALL.len()];
    for step in 0..STEPS {
        let own = |rank: usize| Numbers::new(seed, step, Some(ranks[rank]));
        let mut shared = Numbers::new(seed, step, None);
        Numbers(shared.0 ^ !(ranks[comm.rank()] as u64)).dawdle();
        comm.doing(format_args!("step {step} of seed {seed}"));
        let mut count =
            |operation: Operation, bytes: usize| expected[operation as usize] += bytes as u64;
        match shared.below(8) {
            0 => {
                let length = [0, 1, 5, 777, 5_376, 40_001, 80_003][shared.below(7)];
                let inputs = (0..comm.size()).map(|rank| own(rank).values(length));
                let mut values = own(comm.rank()).values(length);
                comm.all_reduce_sum(&mut values)?;
                assert_eq!(bits(&values), bits(&summed(inputs)), "all-reduce");
                count(Operation::AllReduceSum, 4 * length);
            }
            1 => {
                let most = [1, 300, 70_000][shared.below(3)];
                let inputs: Vec<_> = (0..comm.size()).map(|rank| own(rank).bytes(most)).collect();
                assert_eq!(comm.all_gather(&inputs[comm.rank()])?, inputs, "all-gather");
                count(Operation::AllGather, inputs[comm.rank()].len());
            }
            2 => {
                // Every rank sends some messages to every rank, itself too, before it receives any.
                let messages = shared.below(4);
                let mut sent = own(comm.rank());
                for message in 0..comm.size() * messages {
                    let bytes = sent.bytes(9_000);
                    comm.send(message % comm.size(), &bytes)?;
                    count(Operation::Send, bytes.len());
                }
                for from in (0..comm.size()).rev() {
                    let mut sent = own(from);
                    for message in 0..comm.size() * messages {
                        let bytes = sent.bytes(9_000);
                        if message % comm.size() == comm.rank() {
                            assert_eq!(comm.recv(from)?, bytes, "message from {from}");
                        }
                    }
                }
            }
            3 => comm.barrier()?,
            4 => {
                let ends = ends(&mut shared, comm.size());
                let length = ends[comm.size() - 1];
                let inputs = (0..comm.size()).map(|rank| own(rank).values(length));
                let mut values = own(comm.rank()).values(length);
                comm.reduce_scatter_sum(&mut values, &ends)?;
                let part = part(&ends, comm.rank());
                let sum = &summed(inputs)[part.clone()];
                assert_eq!(bits(&values[part]), bits(sum), "reduce-scatter");
                count(Operation::ReduceScatterSum, 4 * length);
            }
            5 => {
                let ends = ends(&mut shared, comm.size());
                let length = ends[comm.size() - 1];
                let mut values = own(comm.rank()).values(length);
                comm.all_gather_parts(&mut values, &ends)?;
                for rank in 0..comm.size() {
                    let part = part(&ends, rank);
                    let expected = own(rank).values(length);
                    let found = bits(&values[part.clone()]);
                    assert_eq!(found, bits(&expected[part]), "part of rank {rank}");
                }
                count(
                    Operation::AllGatherParts,
                    4 * part(&ends, comm.rank()).len(),
                );
            }
            6 => {
                let most = [1, 300, 9_000][shared.below(3)];
                let parts = |rank: usize| -> Vec<Vec<u8>> {
                    let mut own = own(rank);
                    (0..comm.size()).map(|_| own.bytes(most)).collect()
                };
                let sent = parts(comm.rank());
                count(Operation::AllToAll, sent.iter().map(Vec::len).sum());
                let received = comm.all_to_all(sent)?;
                let expected = (0..comm.size()).map(|rank| parts(rank).swap_remove(comm.rank()));
                assert!(received.into_iter().eq(expected), "all-to-all");
            }
            _ => {
                let colors = 1 + shared.below(3);
                let color = |rank: usize| 5 * own(rank).below(colors);
                let group = comm.split(color(comm.rank()))?;
                let members = (0..comm.size()).filter(|&rank| color(rank) == color(comm.rank()));
                let members: Vec<usize> = members.map(|rank| ranks[rank]).collect();
                assert_eq!(members[group.rank()], ranks[comm.rank()], "split");
                if depth > 0 {
                    run_in(&group, &members, shared.next(), depth - 1)?;
                }
            }
        }
    }
    let traffic = comm.traffic().since(&earlier);
    for operation in Operation::ALL {
        let bytes = traffic.of(operation).bytes;
        assert_eq!(bytes, expected[operation as usize], "bytes of {operation}");
    }
    Ok(())
}
