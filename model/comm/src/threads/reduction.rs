//! Operations on vectors in place, done by whichever rank threads are running.

#![allow(unsafe_code)]

use std::ops::Range;
use std::sync::Arc;

use crate::sum::add;

/// Elements of a part that one rank does at a time: few enough that small vectors are done by the rank that comes
/// last, without waking another one for it.
const PART: usize = 16 << 10;

/// Elements that are summed before they are copied to all ranks: those of two vectors stay in the first cache.
const BLOCK: usize = 2 << 10;

/// What becomes of the vectors of all ranks.
#[derive(Debug, Clone)]
pub(super) enum Aim {
    /// Every rank gets the sum.
    Sum,
    /// Every rank gets its part of the sum; where the parts end.
    SumOfPart(Arc<[usize]>),
    /// Every rank gets every other one's part; where the parts end.
    Parts(Arc<[usize]>),
}

/// The vector of a rank that waits until the result is in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Lent {
    first: *mut f32,
    length: usize,
}

// SAFETY: it stands for `&mut [f32]`, which may be sent. Who uses it has the part for itself, see `Part`.
unsafe impl Send for Lent {}

impl Lent {
    /// # Safety
    ///
    /// From now on, the lender must not access `values` until every part has been given back: until no [`Part`] is left of
    /// the [`Reduction`] that gets this.
    pub(super) unsafe fn new(values: &mut [f32]) -> Self {
        Self {
            first: values.as_mut_ptr(),
            length: values.len(),
        }
    }
}

/// An operation on vectors of one length, in the making.
#[derive(Debug)]
pub(super) struct Reduction {
    aim: Aim,
    lent: Vec<Lent>,
    /// Elements from here on have not been handed out.
    next: usize,
    /// Parts that are being worked on.
    working: usize,
}

impl Reduction {
    /// Of vectors of one length, in the order in which they are summed.
    pub(super) fn new(aim: Aim, lent: Vec<Lent>) -> Self {
        Self {
            aim,
            lent,
            next: 0,
            working: 0,
        }
    }

    fn length(&self) -> usize {
        self.lent.first().map_or(0, |lent| lent.length)
    }

    /// Whether there is something to do for more than one rank.
    pub(super) fn is_shared(&self) -> bool {
        self.length() > PART
    }

    /// Whether nobody touches the vectors at the moment.
    pub(super) fn is_idle(&self) -> bool {
        self.working == 0
    }

    pub(super) fn is_complete(&self) -> bool {
        self.next == self.length() && self.is_idle()
    }

    /// A part that nobody has taken, if one is left. It is to be given back by [`give_back`](Self::give_back).
    pub(super) fn take(&mut self) -> Option<Part> {
        let range = self.next..(self.next + PART).min(self.length());
        if range.is_empty() {
            return None;
        }
        self.next = range.end;
        self.working += 1;
        Some(Part {
            aim: self.aim.clone(),
            lent: self.lent.clone(),
            range,
        })
    }

    pub(super) fn give_back(&mut self, part: Part) {
        drop(part);
        self.working -= 1;
    }
}

/// The same range of every rank's vector, for one thread alone.
#[derive(Debug)]
pub(super) struct Part {
    aim: Aim,
    lent: Vec<Lent>,
    range: Range<usize>,
}

impl Part {
    /// Does this part of the operation.
    pub(super) fn work(&mut self) {
        match self.aim.clone() {
            Aim::Sum => self.blocks(self.range.clone(), |vectors| {
                let (sum, others) = summed(vectors);
                others
                    .iter_mut()
                    .for_each(|other| other.copy_from_slice(sum));
            }),
            Aim::SumOfPart(ends) => self.by_owner(&ends, |owner, vectors| {
                let (sum, others) = summed(vectors);
                if let Some(other) = owner.checked_sub(1) {
                    others[other].copy_from_slice(sum);
                }
            }),
            Aim::Parts(ends) => self.by_owner(&ends, |owner, vectors| {
                let (before, rest) = vectors.split_at_mut(owner);
                let (own, after) = rest.split_first_mut().expect("the vector of the owner");
                before
                    .iter_mut()
                    .chain(after)
                    .for_each(|other| other.copy_from_slice(own));
            }),
        }
    }

    /// Calls `work` with the vectors' blocks in this part, each of one rank's part of the vector.
    fn by_owner(&self, ends: &[usize], mut work: impl FnMut(usize, &mut [&mut [f32]])) {
        let mut start = 0;
        for (owner, &end) in ends.iter().enumerate() {
            let range = start.max(self.range.start)..end.min(self.range.end);
            self.blocks(range, |vectors| work(owner, vectors));
            start = end;
        }
    }

    /// Calls `work` with the vectors' blocks in a range of this part.
    fn blocks(&self, range: Range<usize>, mut work: impl FnMut(&mut [&mut [f32]])) {
        for start in range.clone().step_by(BLOCK) {
            let length = BLOCK.min(range.end - start);
            // SAFETY: the vectors belong to different ranks, each of which lent its own as `&mut` and waits; all are
            // longer than the range; `Reduction::take` gives every element to one part only, so that no other thread
            // uses this one.
            let vectors = self.lent.iter().map(|lent| unsafe {
                std::slice::from_raw_parts_mut(lent.first.add(start), length)
            });
            let mut vectors: Vec<&mut [f32]> = vectors.collect();
            work(&mut vectors);
        }
    }
}

/// The first of some vectors, which has become the sum of all, and the others.
fn summed<'a, 'b>(vectors: &'a mut [&'b mut [f32]]) -> (&'a mut [f32], &'a mut [&'b mut [f32]]) {
    let (sum, others) = vectors.split_first_mut().expect("a group has a rank");
    others.iter().for_each(|other| add(sum, other));
    (sum, others)
}
