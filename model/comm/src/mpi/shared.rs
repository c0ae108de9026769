//! Collective operations on few bytes, in the memory that the ranks of one machine share.
//!
//! To compute a token takes two sums a layer, of a few kilobytes each. As messages of MPI they cost more processor time
//! than the sums themselves, above all where ranks share cores: the first rank wakes up for each vector, and MPI gives the
//! core to other ranks whenever it is asked for a message that is not there yet. Here every rank writes its vector to memory
//! of its own, the last one to arrive adds all of them up, in the order of the ranks, and the others wake up once.

#![allow(unsafe_code)]

use std::cell::UnsafeCell;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::call::Call;
use crate::sum::add_bytes;

/// For how many groups a rank has a cell; later ones use messages. The ranks of a run are in six groups at most.
pub(super) const CELLS: usize = 8;

/// Bytes of a rank in an operation; more of them go in messages, whose own costs do not matter then.
pub(super) const CAPACITY: usize = 32 << 10;

/// Stands for bytes that are too many.
const TOO_LONG: u64 = u64::MAX;

/// What a rank shows to the other ranks of a group.
#[repr(C, align(64))]
pub(super) struct Cell {
    header: Header,
    /// Used in turn: a rank that has completed an operation may begin the next one while others still read what came of
    /// this one. It cannot begin the one after that, which takes the same buffer, before all have entered the next one.
    buffers: [Buffer; 2],
}

#[derive(Debug)]
#[repr(C, align(64))]
struct Header {
    /// The collective operation that the rank has entered last, by messages or not: see [`Shared::enter`].
    entered: AtomicU64,
    /// How many bytes are in each buffer.
    lengths: [AtomicU64; 2],
    /// In the cell of the group's first rank only: how often a rank has written to a buffer.
    arrivals: AtomicU64,
    /// In the cell of the group's first rank only: the number of the last operation that is complete.
    complete: AtomicU64,
}

#[repr(C, align(64))]
struct Buffer(UnsafeCell<[u8; CAPACITY]>);

// SAFETY: a buffer is written by its own rank before `arrivals` counts it, or by the last rank to arrive before
// `complete`; others read it after they have seen the one or the other, and before they arrive again.
unsafe impl Sync for Cell {}

impl fmt::Debug for Cell {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut cell = formatter.debug_struct("Cell");
        cell.field("header", &self.header).finish_non_exhaustive()
    }
}

impl Cell {
    /// Makes a cell of memory with any content. Pages of buffers that no group needs stay untouched.
    ///
    /// # Safety
    ///
    /// The memory is that of a cell, and nobody else uses it yet.
    pub(super) unsafe fn clear(cell: *mut Self) {
        // SAFETY: all bits are valid in a buffer, and zeros in a header.
        unsafe { (&raw mut (*cell).header).write_bytes(0, 1) };
    }

    fn write(&self, turn: usize, bytes: &[u8]) {
        let buffer = self.buffers[turn].0.get();
        assert!(bytes.len() <= CAPACITY);
        // SAFETY: as of `Sync`; the bytes fit, and are elsewhere.
        unsafe { buffer.cast::<u8>().copy_from(bytes.as_ptr(), bytes.len()) };
        self.header.lengths[turn].store(bytes.len() as u64, Ordering::Relaxed);
    }

    /// `None` if they were too many.
    fn read(&self, turn: usize) -> Option<&[u8]> {
        let length = self.header.lengths[turn].load(Ordering::Relaxed);
        // SAFETY: as of `Sync`.
        let bytes = unsafe { &*self.buffers[turn].0.get() };
        (length != TOO_LONG).then(|| &bytes[..length as usize])
    }
}

/// The cells of a group whose ranks are all on this machine.
#[derive(Debug)]
pub(super) struct Shared {
    /// In the order of the ranks.
    cells: Vec<&'static Cell>,
    rank: usize,
    /// How many collective operations this rank has entered.
    entered: AtomicU64,
    /// In how many of them it has used these cells.
    arrived: AtomicU64,
}

/// A rank that has called another operation than the first one.
pub(super) struct Mismatch {
    pub(super) rank: usize,
    pub(super) called: Call,
    pub(super) first_called: Call,
}

impl Shared {
    pub(super) fn new(cells: Vec<&'static Cell>, rank: usize) -> Self {
        Self {
            cells,
            rank,
            entered: AtomicU64::new(0),
            arrived: AtomicU64::new(0),
        }
    }

    /// Shows which operation this rank enters, one that takes messages, too, so that those who wait for it here see that it
    /// does something else. One number has all of it: the low bits of the operation's own number, and the call.
    pub(super) fn enter(&self, call: Call) {
        let number = self.entered.fetch_add(1, Ordering::Relaxed) + 1;
        let word = number << Call::BITS | call.word();
        let own = &self.cells[self.rank].header.entered;
        own.store(word, Ordering::Release);
    }

    /// Hands over bytes for the operation that was entered. Returns whether this rank is the last one to do so: then it is
    /// to [`complete`](Self::complete) the operation.
    pub(super) fn arrive(&self, bytes: &[u8]) -> bool {
        let number = self.arrived.fetch_add(1, Ordering::Relaxed) + 1;
        let (own, turn) = (self.cells[self.rank], turn(number));
        match bytes.len() <= CAPACITY {
            true => own.write(turn, bytes),
            false => own.header.lengths[turn].store(TOO_LONG, Ordering::Relaxed),
        }
        let arrivals = self.cells[0].header.arrivals.fetch_add(1, Ordering::AcqRel) + 1;
        arrivals == number * self.cells.len() as u64
    }

    /// The words of [`enter`](Self::enter) of the ranks that have entered the operation in which this one is.
    fn words(&self) -> impl Iterator<Item = Option<u64>> {
        let words = || {
            let cells = self.cells.iter();
            cells.map(|cell| cell.header.entered.load(Ordering::Acquire))
        };
        let own = self.cells[self.rank].header.entered.load(Ordering::Relaxed);
        words().map(move |word| (word >> Call::BITS == own >> Call::BITS).then_some(word))
    }

    /// The first rank that has not entered the operation.
    pub(super) fn missing(&self) -> Option<usize> {
        self.words().position(|word| word.is_none())
    }

    /// A rank that does something else than the first one, as soon as that one has entered an operation.
    pub(super) fn mismatch(&self) -> Option<Mismatch> {
        let mut words = self.words();
        let first = words.next().flatten()?;
        let (others, called) = words
            .enumerate()
            .filter_map(|(others, word)| Some((others, word?)))
            .find(|&(_, word)| word != first)?;
        Some(Mismatch {
            rank: 1 + others,
            called: Call::of_word(called),
            first_called: Call::of_word(first),
        })
    }

    /// Adds up the vectors of all ranks: the sum is then what the first one has handed over. For the last rank to arrive.
    pub(super) fn add_up(&self) {
        let turn = self.turn();
        let vector = |cell: &'static Cell| cell.read(turn).expect("a vector that fits");
        let (first, others) = self.cells.split_first().expect("a group has a rank");
        let mut sum = vec![0.0f32; vector(first).len() / size_of::<f32>()];
        bytemuck::cast_slice_mut(&mut sum).copy_from_slice(vector(first));
        for other in others {
            add_bytes(&mut sum, vector(other));
        }
        first.write(turn, bytemuck::cast_slice(&sum));
    }

    /// Ends the operation. Whoever waits for it is to be woken afterwards.
    pub(super) fn complete(&self) {
        let number = self.arrived.load(Ordering::Relaxed);
        let complete = &self.cells[0].header.complete;
        complete.store(number, Ordering::Release);
    }

    pub(super) fn is_complete(&self) -> bool {
        let number = self.arrived.load(Ordering::Relaxed);
        self.cells[0].header.complete.load(Ordering::Acquire) == number
    }

    /// What a rank has handed over, when the operation is complete; `None` if it was too long.
    pub(super) fn bytes_of(&self, rank: usize) -> Option<&[u8]> {
        self.cells[rank].read(self.turn())
    }

    fn turn(&self) -> usize {
        turn(self.arrived.load(Ordering::Relaxed))
    }
}

/// The buffer of an operation.
fn turn(number: u64) -> usize {
    number as usize % 2
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::sum::bytes_of;

    /// Groups of so many ranks, on cells with any content.
    fn groups(size: usize) -> Vec<Shared> {
        let cells: Vec<&'static Cell> = (0..size)
            .map(|_| {
                let cell = Box::leak(Box::new(std::mem::MaybeUninit::<Cell>::uninit()));
                // SAFETY: the memory lives for ever, and is that of a cell.
                unsafe {
                    cell.as_mut_ptr().write_bytes(0xa5, 1);
                    Cell::clear(cell.as_mut_ptr());
                    cell.assume_init_ref()
                }
            })
            .collect();
        (0..size)
            .map(|rank| Shared::new(cells.clone(), rank))
            .collect()
    }

    #[test]
    fn whoever_comes_last_adds_up_in_the_order_of_the_ranks() {
        const ROUNDS: usize = 2_000;
        let groups = groups(3);
        // 1e8 + 1 is 1e8 in f32: another order of the ranks gives another sum.
        let value = |round: usize, rank: usize| [1.0, 1e8 + round as f32 * 8.0, -1e8][rank];
        thread::scope(|scope| {
            for (rank, group) in groups.iter().enumerate() {
                scope.spawn(move || {
                    for round in 0..ROUNDS {
                        let length = 1 + round % 7;
                        group.enter(Call::AllReduceSum { length });
                        if group.arrive(bytes_of(&vec![value(round, rank); length])) {
                            assert!(group.missing().is_none() && group.mismatch().is_none());
                            group.add_up();
                            group.complete();
                        }
                        while !group.is_complete() {
                            thread::yield_now();
                        }
                        let sum = value(round, 0) + value(round, 1) + value(round, 2);
                        let found = group.bytes_of(0).unwrap();
                        assert_eq!(found, bytes_of(&vec![sum; length]), "round {round}");
                    }
                });
            }
        });
    }

    #[test]
    fn a_rank_that_does_something_else_is_seen_by_those_that_wait() {
        let groups = groups(3);
        groups[1].enter(Call::Barrier);
        assert!(!groups[1].arrive(&[]));
        assert_eq!(groups[1].missing(), Some(0));
        assert!(groups[1].mismatch().is_none());
        // What the group does, the first rank says.
        groups[2].enter(Call::AllGather);
        assert!(groups[1].mismatch().is_none());
        groups[0].enter(Call::Barrier);
        let mismatch = groups[1].mismatch().unwrap();
        assert_eq!(mismatch.rank, 2);
        assert_eq!(mismatch.called, Call::AllGather);
        assert_eq!(mismatch.first_called, Call::Barrier);
        assert!(groups[1].missing().is_none());
    }

    #[test]
    fn bytes_that_do_not_fit_are_no_bytes() {
        let groups = groups(2);
        groups.iter().for_each(|group| group.enter(Call::AllGather));
        assert!(!groups[0].arrive(&[1; CAPACITY + 1]));
        assert!(groups[1].arrive(&[2; CAPACITY]));
        groups[1].complete();
        assert!(groups[0].is_complete());
        assert_eq!(groups[0].bytes_of(0), None);
        assert_eq!(groups[0].bytes_of(1), Some(&[2; CAPACITY][..]));
    }
}
