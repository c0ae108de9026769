//! What the ranks of one machine know of each other, in memory that they share: what each is doing, what it waits for,
//! whether it has finished, and the first failure. It needs no messages, so that it is there for a rank that cannot send any more.

#![allow(unsafe_code)]

use std::fmt::{self, Write};
use std::fs;
use std::mem;
use std::os::unix::fs::MetadataExt;
use std::process;
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mpi::ffi::{self, MPI_Comm, MPI_Win};

use super::futex;
use super::shared::{CELLS, Cell};
use super::text::SharedText;
use crate::blame::Activity;
use crate::{Cause, Failure, Operation};

/// Bytes that say what a rank is doing.
const DOING: usize = 120;

/// Bytes of a failure.
const FAILURE: usize = 2000;

/// Shutdown state of a rank. One that works has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Shutdown {
    /// Its own work has finished without an error.
    Finished = 1,
    /// It knows that all others have finished too: its process may exit.
    Complete = 2,
    /// It has reported the failure of the run.
    Reported = 3,
}

/// One rank's part of the memory.
#[derive(Debug)]
#[repr(C, align(64))]
struct Slot {
    rank: AtomicU32,
    /// Changes whenever there is something new for this rank, which may sleep on it.
    news: AtomicU32,
    /// Whether it sleeps.
    sleeps: AtomicU32,
    /// A [`Shutdown`], or 0.
    shutdown: AtomicU32,
    /// The operation that this rank waits in and the rank that it waits for, each plus one, or 0.
    waits: AtomicU64,
    /// When this rank last entered or completed an operation, in nanoseconds after it has joined the node.
    stepped: AtomicU64,
    process: AtomicU32,
    /// In the first slot only: the rank that has written the first failure, plus one, or 0.
    failed: AtomicU32,
    /// In the first slot only: whether a rank has begun to report the failure.
    reported: AtomicU32,
    /// Where the number of the process is valid.
    namespace: AtomicU64,
    doing: SharedText<DOING>,
    /// The failure of the run, as this rank has found it.
    failure: SharedText<FAILURE>,
    /// For the groups of this rank, in the order in which they were made.
    cells: [Cell; CELLS],
}

/// The memory that the ranks of this machine share.
#[derive(Debug)]
pub(super) struct Node {
    rank: usize,
    /// By rank in the whole run; none for those of other machines.
    slots: Vec<Option<&'static Slot>>,
    elsewhere: Vec<usize>,
    window: MPI_Win,
    /// When this rank has joined. All ranks of the node do so at the same time, as they come from a barrier, so that the
    /// times in slots need no clock that is the same for all.
    joined: Instant,
    /// What this rank is doing is put together here.
    doing: Mutex<String>,
}

// SAFETY: the window is used only by `new` and by `free`, which takes the node by value; everything else is atomic.
unsafe impl Send for Node {}
// SAFETY: as above.
unsafe impl Sync for Node {}

impl Node {
    /// Takes part in the memory of this machine. All processes of `comm` do so at once.
    ///
    /// # Safety
    ///
    /// `comm` is alive, and MPI is not called anywhere else in the meantime.
    pub(super) unsafe fn new(comm: MPI_Comm, rank: usize, size: usize) -> Self {
        // SAFETY: MPI writes to these variables only. The memory has room for a slot at its first aligned address, which all
        // processes agree on, as each of them maps the window at a page. It is there until the window is freed, which `free`
        // does when nobody has the slots any more. Zeros are valid values of a slot, whose fields are atomic but for the
        // buffers of its cells. The epoch that `MPI_Win_lock_all` opens lets processes load and store there.
        unsafe {
            let mut node = ffi::RSMPI_COMM_NULL;
            let shared = ffi::RSMPI_COMM_TYPE_SHARED;
            ffi::MPI_Comm_split_type(comm, shared, 0, ffi::RSMPI_INFO_NULL, &raw mut node);
            let mut ranks = 0;
            ffi::MPI_Comm_size(node, &raw mut ranks);
            let mut own = ptr::null_mut::<Slot>();
            let mut window = ffi::RSMPI_WIN_NULL;
            let bytes = (size_of::<Slot>() + align_of::<Slot>()) as ffi::MPI_Aint;
            let info = ffi::RSMPI_INFO_NULL;
            ffi::MPI_Win_allocate_shared(
                bytes,
                1,
                info,
                node,
                (&raw mut own).cast(),
                &raw mut window,
            );
            ffi::MPI_Win_lock_all(0, window);
            let own = aligned(own);
            own.cast::<u8>()
                .write_bytes(0, mem::offset_of!(Slot, cells));
            for cell in 0..CELLS {
                Cell::clear(&raw mut (*own).cells[cell]);
            }
            (*own).rank.store(rank as u32, Ordering::Relaxed);
            (*own).process.store(process::id(), Ordering::Relaxed);
            (*own).namespace.store(namespace(), Ordering::Relaxed);
            ffi::MPI_Win_sync(window);
            ffi::MPI_Barrier(node);
            let joined = Instant::now();
            ffi::MPI_Win_sync(window);
            let mut slots = vec![None; size];
            for other in 0..ranks {
                let (mut bytes, mut unit, mut slot) = (0, 0, ptr::null::<Slot>());
                let address = (&raw mut slot).cast();
                ffi::MPI_Win_shared_query(window, other, &raw mut bytes, &raw mut unit, address);
                let slot: &'static Slot = &*aligned(slot.cast_mut());
                slots[slot.rank.load(Ordering::Relaxed) as usize] = Some(slot);
            }
            ffi::MPI_Comm_free(&raw mut node);
            let is_elsewhere = |rank: &usize| slots[*rank].is_none();
            Self {
                rank,
                elsewhere: (0..size).filter(is_elsewhere).collect(),
                slots,
                window,
                joined,
                doing: Mutex::default(),
            }
        }
    }

    /// Gives the memory back. All processes do so at once.
    ///
    /// # Safety
    ///
    /// MPI is not called anywhere else in the meantime.
    pub(super) unsafe fn free(mut self) {
        self.slots.clear();
        // SAFETY: the window is alive, and nobody has its slots any more.
        unsafe {
            ffi::MPI_Win_unlock_all(self.window);
            ffi::MPI_Win_free(&raw mut self.window);
        }
    }

    fn own(&self) -> &Slot {
        self.slots[self.rank].expect("a rank is on its own machine")
    }

    fn first(&self) -> &Slot {
        let mut here = self.slots.iter().flatten();
        here.next().expect("a rank is on its own machine")
    }

    /// Waits until all live ranks of this machine have reached `state`, or for `longest`.
    pub(super) fn await_others(&self, state: Shutdown, dead: Option<usize>, longest: Duration) {
        let started = Instant::now();
        let here = || (0..self.slots.len()).filter(|&rank| self.has(rank) && Some(rank) != dead);
        loop {
            let seen = self.news();
            let left = longest.saturating_sub(started.elapsed());
            if left.is_zero() || here().all(|rank| self.has_reached(rank, state)) {
                return;
            }
            self.sleep(seen, left);
        }
    }

    /// Whether a rank is on this machine.
    pub(super) fn has(&self, rank: usize) -> bool {
        self.slots[rank].is_some()
    }

    /// A cell of a rank on this machine, if it has as many.
    pub(super) fn cell(&self, rank: usize, number: usize) -> Option<&'static Cell> {
        self.slots[rank]?.cells.get(number)
    }

    /// How many ranks are on this machine.
    pub(super) fn size(&self) -> usize {
        self.slots.iter().flatten().count()
    }

    /// Whether no other rank of this machine has asked this before.
    pub(super) fn is_first_to_report(&self) -> bool {
        self.first().reported.swap(1, Ordering::AcqRel) == 0
    }

    /// The ranks on other machines.
    pub(super) fn elsewhere(&self) -> &[usize] {
        &self.elsewhere
    }

    /// The other ranks on this machine, with the numbers of their processes, where these mean the same to this one.
    pub(super) fn neighbours(&self) -> impl Iterator<Item = (usize, u32)> {
        let namespace = self.own().namespace.load(Ordering::Relaxed);
        let slots = self.slots.iter().enumerate();
        slots.filter_map(move |(rank, slot)| {
            let slot = slot.filter(|slot| {
                rank != self.rank && slot.namespace.load(Ordering::Relaxed) == namespace
            })?;
            Some((rank, slot.process.load(Ordering::Relaxed)))
        })
    }

    /// Says what this rank is doing.
    pub(super) fn doing(&self, what: fmt::Arguments<'_>) {
        let mut doing = self.doing.lock().unwrap_or_else(PoisonError::into_inner);
        doing.clear();
        // Writing to a string fails only if a caller's own `Display` does; what there is so far remains.
        let _ = doing.write_fmt(what);
        self.own().doing.write(doing.as_bytes());
    }

    /// What a rank is doing; empty for one on another machine.
    pub(super) fn doing_of(&self, rank: usize) -> String {
        let doing = self.slots[rank].map(|slot| slot.doing.read());
        String::from_utf8_lossy(&doing.unwrap_or_default()).into_owned()
    }

    /// Notes that this rank enters or completes an operation.
    pub(super) fn step(&self) {
        let time = self.joined.elapsed().as_nanos() as u64;
        self.own().stepped.store(time, Ordering::Relaxed);
    }

    /// Notes in which operation this rank waits, and for whom. This holds until the message is here or the run has
    /// failed, also while the rank itself decides about a timeout: others that do so at the same time must not take it
    /// for one that computes.
    pub(super) fn waits(&self, operation: Operation, other: usize) {
        let waits = (operation as u64 + 1) << 32 | (other as u64 + 1);
        self.step();
        self.own().waits.store(waits, Ordering::Release);
    }

    /// Notes that this rank has what it has waited for.
    pub(super) fn waits_no_more(&self) {
        // In this order, so that who sees that it does not wait sees the time as well.
        self.step();
        self.own().waits.store(0, Ordering::Release);
    }

    /// What a rank is up to, as far as it is known here.
    pub(super) fn activity(&self, rank: usize) -> Activity {
        let Some(slot) = self.slots[rank] else {
            return Activity {
                waits: None,
                idle: None,
            };
        };
        let waits = slot.waits.load(Ordering::Acquire);
        let stepped = Duration::from_nanos(slot.stepped.load(Ordering::Relaxed));
        let operation = ((waits >> 32) as usize).checked_sub(1);
        Activity {
            waits: operation.map(|kind| (Operation::ALL[kind], (waits as u32 - 1) as usize)),
            idle: Some(self.joined.elapsed().saturating_sub(stepped)),
        }
    }

    /// Records that this rank has reached `state`.
    pub(super) fn reach(&self, state: Shutdown) {
        let shutdown = &self.own().shutdown;
        shutdown.store(state as u32, Ordering::Release);
        self.notify_all();
    }

    /// Whether a rank has reached `state`, as far as it is known here.
    pub(super) fn has_reached(&self, rank: usize, state: Shutdown) -> bool {
        self.slots[rank].is_some_and(|slot| slot.shutdown.load(Ordering::Acquire) >= state as u32)
    }

    /// Publishes a failure to this machine's ranks; returns whether it is the first. One thread at a time may do so.
    pub(super) fn publish(&self, failure: &Failure) -> bool {
        let own = self.own();
        own.failure.write(&encoded(failure));
        let (failed, number) = (&self.first().failed, self.rank as u32 + 1);
        let first = failed.compare_exchange(0, number, Ordering::AcqRel, Ordering::Relaxed);
        self.notify_all();
        first.is_ok()
    }

    /// The failure of the run.
    pub(super) fn failure(&self) -> Option<Failure> {
        let failed = self.first().failed.load(Ordering::Acquire).checked_sub(1)?;
        let slot = self.slots[failed as usize]?;
        serde_json::from_slice(&slot.failure.read()).ok()
    }

    /// A number that changes with everything that is new for this rank.
    pub(super) fn news(&self) -> u32 {
        self.own().news.load(Ordering::SeqCst)
    }

    /// Sleeps until there is something new since `seen`, but not longer than `longest`.
    pub(super) fn sleep(&self, seen: u32, longest: Duration) {
        let own = self.own();
        own.sleeps.store(1, Ordering::SeqCst);
        futex::wait(&own.news, seen, longest);
        own.sleeps.store(0, Ordering::SeqCst);
    }

    /// Tells a rank that there is something new, if it is on this machine.
    pub(super) fn notify(&self, rank: usize) {
        if let Some(slot) = self.slots[rank] {
            slot.news.fetch_add(1, Ordering::SeqCst);
            if slot.sleeps.load(Ordering::SeqCst) != 0 {
                futex::wake(&slot.news);
            }
        }
    }

    /// Tells all ranks of this machine.
    pub(super) fn notify_all(&self) {
        (0..self.slots.len()).for_each(|rank| self.notify(rank));
    }
}

/// Where a slot begins in memory of a window: MPI may align it less.
fn aligned(memory: *mut Slot) -> *mut Slot {
    let bytes = memory.cast::<u8>();
    bytes
        .wrapping_add(bytes.align_offset(align_of::<Slot>()))
        .cast()
}

/// Tells apart the sets of processes in which a number means the same process; 0 where there is one set.
fn namespace() -> u64 {
    fs::metadata("/proc/self/ns/pid").map_or(0, |namespace| namespace.ino())
}

/// In [`FAILURE`] bytes: long texts are cut.
pub(super) fn encoded(failure: &Failure) -> Vec<u8> {
    let mut failure = failure.clone();
    loop {
        let encoded = serde_json::to_vec(&failure).expect("a failure has texts and numbers only");
        if encoded.len() <= FAILURE {
            return encoded;
        }
        let Failure { doing, cause, .. } = &mut failure;
        shorten(doing);
        match cause {
            Cause::Panicked(text) | Cause::Misuse(text) => shorten(text),
            Cause::Failed { error, hint, .. } => {
                shorten(error);
                hint.as_mut().map(shorten);
            }
            _ => (),
        }
    }
}

/// Cuts a text to half its length, at the end of a character.
fn shorten(text: &mut String) {
    text.truncate(text.floor_char_boundary(text.len() / 2));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_failure_is_cut_to_the_bytes_that_there_are() {
        let failure = |text: String| Failure {
            rank: 7,
            doing: "layer 3".to_owned(),
            cause: Cause::Panicked(text),
        };
        let short = failure("no room".to_owned());
        let decoded: Failure = serde_json::from_slice(&encoded(&short)).unwrap();
        assert_eq!(decoded, short);
        let long = encoded(&failure("\u{1}é".repeat(FAILURE)));
        assert!(long.len() <= FAILURE);
        let decoded: Failure = serde_json::from_slice(&long).unwrap();
        assert_eq!(decoded.rank, 7);
        assert!(decoded.to_string().contains("\u{1}é\u{1}"), "{decoded}");
    }
}
