//! One rank's handle of a group, whose collective operations are made of messages from rank to rank; but for short ones of
//! ranks that share memory.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::{Arc, Mutex, TryLockError};

use super::process::{END, Process};
use super::shared::{CAPACITY, Mismatch, Shared};
use crate::call::Call;
use crate::parts::{check_parts, part};
use crate::sum::{add_bytes, bytes_of};
use crate::timeout::Timeout;
use crate::traffic::Counters;
use crate::{Cause, Comm, CommError, Operation, Traffic};

/// Tags of a group: one of its collective operations, one of `send`.
const TAGS: u32 = 2;

/// Vector length from which each rank sums one part (reduce-scatter, then all-gather). Shorter vectors are summed on
/// one rank, which takes fewer messages.
const PARTS_FROM: usize = 1 << 20;

/// Fan-out of the broadcast tree.
const FAN_OUT: usize = 8;

/// One rank of a group.
#[derive(Debug)]
pub(super) struct Member {
    process: Arc<Process>,
    /// The ranks of this group, as world ranks.
    ranks: Vec<usize>,
    rank: usize,
    tag: u32,
    /// For short operations, if all ranks are on this machine.
    shared: Option<Shared>,
    counters: Counters,
    /// Held during a collective operation.
    busy: Mutex<()>,
}

/// A collective operation that this rank has entered.
#[derive(Debug, Clone, Copy)]
struct Entered {
    call: Call,
    /// Of the operation as a whole, however many messages it takes.
    timeout: Timeout,
}

impl Member {
    /// The group of all ranks.
    pub(super) fn world(process: &Arc<Process>) -> Self {
        let tag = process.next_tag();
        process.reserve_tags(tag + TAGS);
        let all = (0..process.size).collect();
        let cell = process.take_cell();
        Self::new(process, all, process.rank, tag).sharing(|_| cell)
    }

    /// Waits until all ranks have finished, for as long as they need.
    ///
    /// # Errors
    ///
    /// When the run fails.
    pub(super) fn end(process: &Arc<Process>) -> Result<(), CommError> {
        let all = (0..process.size).collect();
        Self::new(process, all, process.rank, END).barrier()
    }

    fn new(process: &Arc<Process>, ranks: Vec<usize>, rank: usize, tag: u32) -> Self {
        Self {
            process: Arc::clone(process),
            ranks,
            rank,
            tag,
            shared: None,
            counters: Counters::default(),
            busy: Mutex::default(),
        }
    }

    /// Does short operations in the cells that the ranks, by their places in this group, have for it, if all have one.
    fn sharing(mut self, cell: impl Fn(usize) -> usize) -> Self {
        let node = &self.process.node;
        let ranks = self.ranks.iter().enumerate();
        let cells = ranks.map(|(place, &rank)| node.cell(rank, cell(place)));
        let cells = cells.collect::<Option<Vec<_>>>();
        self.shared = cells.map(|cells| Shared::new(cells, self.rank));
        self
    }

    /// # Errors
    ///
    /// When the run has failed, or there is no rank `other` in this group.
    fn check(&self, operation: Operation, other: usize) -> Result<(), CommError> {
        let size = self.size();
        if other >= size {
            let article = operation.with_article();
            let mistake = format!("named rank {other} of a group of {size} in {article}");
            return Err(self.misuse(operation, self.rank, mistake));
        }
        match self.process.failure() {
            Some(_) => Err(self.process.error(operation)),
            None => Ok(()),
        }
    }

    fn misuse(&self, operation: Operation, rank: usize, mistake: String) -> CommError {
        self.process.fail(self.ranks[rank], Cause::Misuse(mistake));
        self.process.error(operation)
    }

    /// Does a collective operation, in which the caller hands over so many bytes.
    fn collective<T>(
        &self,
        call: Call,
        bytes: usize,
        work: impl FnOnce(Entered) -> Result<T, CommError>,
    ) -> Result<T, CommError> {
        let operation = call.operation();
        self.check(operation, self.rank)?;
        let _busy = match self.busy.try_lock() {
            Ok(busy) => busy,
            Err(TryLockError::Poisoned(busy)) => busy.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let twice = "called two operations of one group at once, on different threads";
                return Err(self.misuse(operation, self.rank, twice.to_owned()));
            }
        };
        self.process.node.step();
        if let Some(shared) = &self.shared {
            shared.enter(call);
        }
        let timeout = match self.tag {
            END => Timeout::NEVER,
            _ => Timeout::after(self.process.deadline),
        };
        let done = work(Entered { call, timeout })?;
        self.process.node.step();
        self.counters.add(operation, bytes);
        Ok(done)
    }

    /// Sends a part of a collective operation.
    fn pass(&self, entered: Entered, to: usize, bytes: &[u8]) {
        let message = [bytes, &entered.call.encoded()].concat();
        self.process.send(self.ranks[to], self.tag, message);
    }

    /// Receives a part of a collective operation.
    fn take(&self, entered: Entered, from: usize) -> Result<Vec<u8>, CommError> {
        let Entered { call, timeout } = entered;
        let operation = call.operation();
        let from_all = self.ranks[from];
        let mut bytes = self
            .process
            .receive(operation, from_all, self.tag, timeout)?;
        let other = bytes.split_off(bytes.len() - Call::BYTES);
        if other == call.encoded() {
            return Ok(bytes);
        }
        let (own, other) = (self.ranks[self.rank], Call::decoded(&other));
        let mistake = format!("called {other} where rank {own} called {call}");
        Err(self.misuse(operation, from, mistake))
    }

    /// Gives the bytes of the first rank to all, from rank to rank in a tree.
    fn spread(&self, entered: Entered, own: Vec<u8>) -> Result<Vec<u8>, CommError> {
        let bytes = match self.rank.checked_sub(1) {
            None => own,
            Some(before) => self.take(entered, before / FAN_OUT)?,
        };
        let children = FAN_OUT * self.rank + 1..=FAN_OUT * (self.rank + 1);
        for child in children.take_while(|&child| child < self.size()) {
            self.pass(entered, child, &bytes);
        }
        Ok(bytes)
    }

    /// Does an operation in shared memory, to which this rank hands over its bytes: the last rank to do so does `work`.
    fn meet(
        &self,
        entered: Entered,
        shared: &Shared,
        own: &[u8],
        work: impl FnOnce(),
    ) -> Result<(), CommError> {
        let Entered { call, timeout } = entered;
        let (is_last, operation) = (shared.arrive(own), call.operation());
        let mismatched = || {
            let mismatch = shared.mismatch()?;
            Some(self.mismatched(operation, mismatch))
        };
        if is_last {
            if let Some(error) = mismatched() {
                return Err(error);
            }
            work();
            shared.complete();
            let others = self.others().map(|other| self.ranks[other]);
            others.for_each(|rank| self.process.node.notify(rank));
            return Ok(());
        }
        let mut awaited = self.others().next().expect("another rank is the last one");
        self.process.wait_here(operation, timeout, || {
            if shared.is_complete() {
                return Ok(());
            }
            // Fails the run, as the wait then sees.
            mismatched();
            // When all have arrived, the last one is still at work.
            awaited = shared.missing().unwrap_or(awaited);
            Err(self.ranks[awaited])
        })
    }

    /// Fails the run since ranks have called different operations.
    fn mismatched(&self, operation: Operation, mismatch: Mismatch) -> CommError {
        let Mismatch {
            rank,
            called,
            first_called,
        } = mismatch;
        let first = self.ranks[0];
        let mistake = format!("called {called} where rank {first} called {first_called}");
        self.misuse(operation, rank, mistake)
    }

    /// The bytes of every rank, from shared memory; `None` if they are too long for some of them.
    fn gather_here(
        &self,
        entered: Entered,
        shared: &Shared,
        own: &[u8],
    ) -> Result<Option<Vec<Vec<u8>>>, CommError> {
        self.meet(entered, shared, own, || ())?;
        let all = (0..self.size()).map(|rank| Some(shared.bytes_of(rank)?.to_vec()));
        Ok(all.collect())
    }

    /// Gives the bytes of every rank to all: through shared memory, or by way of the first rank.
    fn gather(&self, entered: Entered, own: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        if let Some(shared) = &self.shared
            && let Some(all) = self.gather_here(entered, shared, own)?
        {
            return Ok(all);
        }
        let mut together = Vec::new();
        if self.rank > 0 {
            self.pass(entered, 0, own);
        } else {
            let mut join = |bytes: &[u8]| {
                together.extend((bytes.len() as u64).to_le_bytes());
                together.extend(bytes);
            };
            join(own);
            for other in 1..self.size() {
                join(&self.take(entered, other)?);
            }
        }
        let together = self.spread(entered, together)?;
        let mut rest = together.as_slice();
        let mut all = Vec::with_capacity(self.size());
        while let Some((length, bytes)) = rest.split_first_chunk() {
            let (bytes, after) = bytes.split_at(u64::from_le_bytes(*length) as usize);
            all.push(bytes.to_vec());
            rest = after;
        }
        Ok(all)
    }

    /// One rank sums all vectors: the last one to come, where they are in shared memory, or the first one.
    fn sum_at_one(&self, entered: Entered, values: &mut [f32]) -> Result<(), CommError> {
        if let Some(shared) = &self.shared
            && size_of_val(values) <= CAPACITY
        {
            self.meet(entered, shared, bytes_of(values), || shared.add_up())?;
            return copy(values, shared.bytes_of(0).expect("a vector that fits"));
        }
        if self.rank > 0 {
            self.pass(entered, 0, bytes_of(values));
            return copy(values, &self.spread(entered, Vec::new())?);
        }
        for other in 1..self.size() {
            add_bytes(values, &self.take(entered, other)?);
        }
        self.spread(entered, bytes_of(values).to_vec())?;
        Ok(())
    }

    /// The other ranks of the group, the next one first, so that not all of them send to the same one.
    fn others(&self) -> impl Iterator<Item = usize> + use<> {
        let (rank, size) = (self.rank, self.size());
        (1..size).map(move |step| (rank + step) % size)
    }

    /// Every rank sums a part of all vectors, and keeps it.
    fn sum_own_part(
        &self,
        entered: Entered,
        values: &mut [f32],
        ends: &[usize],
    ) -> Result<(), CommError> {
        for other in self.others() {
            self.pass(entered, other, bytes_of(&values[part(ends, other)]));
        }
        let own = values[part(ends, self.rank)].to_vec();
        let sum = &mut values[part(ends, self.rank)];
        for other in 0..self.size() {
            let received = match other == self.rank {
                true => None,
                false => Some(self.take(entered, other)?),
            };
            let more = received.as_deref().unwrap_or(bytes_of(&own));
            match other {
                0 => copy(sum, more)?,
                _ => add_bytes(sum, more),
            }
        }
        Ok(())
    }

    /// Every rank gives its part of a vector to all others.
    fn share_parts(
        &self,
        entered: Entered,
        values: &mut [f32],
        ends: &[usize],
    ) -> Result<(), CommError> {
        for other in self.others() {
            self.pass(entered, other, bytes_of(&values[part(ends, self.rank)]));
        }
        self.others().try_for_each(|other| {
            let theirs = self.take(entered, other)?;
            copy(&mut values[part(ends, other)], &theirs)
        })
    }
}

/// The values of these bytes.
fn copy(values: &mut [f32], bytes: &[u8]) -> Result<(), CommError> {
    bytemuck::cast_slice_mut(values).copy_from_slice(bytes);
    Ok(())
}

impl Comm for Member {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.ranks.len()
    }

    fn split(&self, color: usize) -> Result<Arc<dyn Comm>, CommError> {
        let cell = self.process.take_cell() as u64;
        let own = [color as u64, self.process.next_tag().into(), cell];
        let own = own.map(u64::to_le_bytes).concat();
        let all = self.collective(Call::Split, 0, |entered| self.gather(entered, &own))?;
        let all: Vec<[u64; 3]> = all
            .iter()
            .map(|both| bytemuck::pod_read_unaligned(both))
            .collect();
        let colors: BTreeSet<u64> = all.iter().map(|&[color, ..]| color).collect();
        // All ranks of this group use the same tags, which none of them has used in another group.
        let tags = all.iter().map(|&[_, tag, _]| tag as u32);
        let first_tag = tags.max().unwrap_or(0);
        let place = colors
            .iter()
            .take_while(|&&other| other < color as u64)
            .count() as u32;
        self.process
            .reserve_tags(first_tag + TAGS * colors.len() as u32);
        let members = all.iter().zip(&self.ranks);
        let members = members.filter(|([other, ..], _)| *other == color as u64);
        let (cells, ranks): (Vec<usize>, Vec<usize>) = members
            .map(|(&[.., cell], &rank)| (cell as usize, rank))
            .unzip();
        let rank = ranks
            .iter()
            .take_while(|&&rank| rank != self.process.rank)
            .count();
        let tag = first_tag + TAGS * place;
        let group = Self::new(&self.process, ranks, rank, tag);
        Ok(Arc::new(group.sharing(|place| cells[place])))
    }

    fn all_reduce_sum(&self, values: &mut [f32]) -> Result<(), CommError> {
        let length = values.len();
        let call = Call::AllReduceSum { length };
        self.collective(call, size_of_val(values), |entered| match self.size() {
            1 => Ok(()),
            size if length < PARTS_FROM.max(size) => self.sum_at_one(entered, values),
            size => {
                let ends = (1..=size).map(|rank| rank * length / size);
                let ends: Vec<usize> = ends.collect();
                self.sum_own_part(entered, values, &ends)?;
                self.share_parts(entered, values, &ends)
            }
        })
    }

    fn reduce_scatter_sum(&self, values: &mut [f32], ends: &[usize]) -> Result<(), CommError> {
        check_parts(ends, self.size(), values.len());
        let call = Call::ReduceScatterSum {
            length: values.len(),
        };
        self.collective(call, size_of_val(values), |entered| {
            self.sum_own_part(entered, values, ends)
        })
    }

    fn all_gather_parts(&self, values: &mut [f32], ends: &[usize]) -> Result<(), CommError> {
        check_parts(ends, self.size(), values.len());
        let call = Call::AllGatherParts {
            length: values.len(),
        };
        let bytes = size_of::<f32>() * part(ends, self.rank).len();
        self.collective(call, bytes, |entered| {
            self.share_parts(entered, values, ends)
        })
    }

    fn all_to_all(&self, mut parts: Vec<Vec<u8>>) -> Result<Vec<Vec<u8>>, CommError> {
        assert_eq!(parts.len(), self.size(), "a part for each rank");
        let bytes = parts.iter().map(Vec::len).sum();
        self.collective(Call::AllToAll, bytes, |entered| {
            for other in self.others() {
                self.pass(entered, other, &parts[other]);
            }
            let own = std::mem::take(&mut parts[self.rank]);
            let received = (0..self.size()).map(|other| match other == self.rank {
                true => Ok(own.clone()),
                false => self.take(entered, other),
            });
            received.collect()
        })
    }

    fn all_gather(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>, CommError> {
        let gather = |entered| self.gather(entered, bytes);
        self.collective(Call::AllGather, bytes.len(), gather)
    }

    fn send(&self, to: usize, bytes: &[u8]) -> Result<(), CommError> {
        self.check(Operation::Send, to)?;
        self.process
            .send(self.ranks[to], self.tag + 1, bytes.to_vec());
        self.counters.add(Operation::Send, bytes.len());
        Ok(())
    }

    fn recv(&self, from: usize) -> Result<Vec<u8>, CommError> {
        let operation = Operation::Recv;
        self.check(operation, from)?;
        let (from, tag) = (self.ranks[from], self.tag + 1);
        let timeout = Timeout::after(self.process.deadline);
        let bytes = self.process.receive(operation, from, tag, timeout)?;
        self.counters.add(operation, 0);
        Ok(bytes)
    }

    fn wait(&self, from: usize) -> Result<Vec<u8>, CommError> {
        let operation = Operation::Recv;
        self.check(operation, from)?;
        let (from, tag) = (self.ranks[from], self.tag + 1);
        let bytes = self.process.receive(operation, from, tag, Timeout::NEVER)?;
        self.counters.add(operation, 0);
        Ok(bytes)
    }

    fn barrier(&self) -> Result<(), CommError> {
        self.collective(Call::Barrier, 0, |entered| self.gather(entered, &[]))?;
        Ok(())
    }

    fn traffic(&self) -> Traffic {
        self.counters.traffic()
    }

    fn doing(&self, what: fmt::Arguments<'_>) {
        self.process.node.doing(what);
    }
}
