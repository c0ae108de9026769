//! In-place all-reduce, computed by whichever rank threads are running.

#![allow(unsafe_code)]

use std::ops::Range;

use crate::sum::add;

/// Elements of a part that one rank sums at a time: few enough that small vectors are summed by the rank that comes
/// last, without waking another one for it.
const PART: usize = 16 << 10;

/// Elements that are summed before they are copied to all ranks: those of two vectors stay in the first cache.
const BLOCK: usize = 2 << 10;

/// The vector of a rank that waits until the sum is in it.
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

/// The sum of vectors of one length, in the making.
#[derive(Debug)]
pub(super) struct Reduction {
    lent: Vec<Lent>,
    /// Elements from here on have not been handed out.
    next: usize,
    /// Parts that are being summed.
    working: usize,
}

impl Reduction {
    /// Of vectors of one length, in the order in which they are summed.
    pub(super) fn new(lent: Vec<Lent>) -> Self {
        Self {
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
    lent: Vec<Lent>,
    range: Range<usize>,
}

impl Part {
    /// Sums, and puts the sum into every vector.
    pub(super) fn sum(&mut self) {
        for start in self.range.clone().step_by(BLOCK) {
            let length = BLOCK.min(self.range.end - start);
            // SAFETY: the vectors belong to different ranks, each of which lent its own as `&mut` and waits; all are
            // longer than the range; `Reduction::take` gives every element to one part only, so that no other thread
            // uses this one.
            let mut vectors = self.lent.iter().map(|lent| unsafe {
                std::slice::from_raw_parts_mut(lent.first.add(start), length)
            });
            let Some(sum) = vectors.next() else { return };
            let others: Vec<_> = vectors.collect();
            for other in &others {
                add(sum, other);
            }
            for other in others {
                other.copy_from_slice(sum);
            }
        }
    }
}
