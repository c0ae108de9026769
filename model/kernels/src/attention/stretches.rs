//! A sequence falls into stretches that do not see each other: attention runs within each as if it were a sequence. A
//! sequence that attends to every key of another is one stretch.

use std::ops::Range;

use super::rows::{AttentionShape, KEYS};

/// Neighbouring positions of a sequence that only see each other: a document, or all of it. Positions are counted from
/// the stretch's first one, so that what is computed of it does not depend on where it stands.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Stretch<'a> {
    /// The sequence in the batch.
    pub sequence: usize,
    /// The position of the sequence that is its first.
    pub start: usize,
    /// Positions.
    pub length: usize,
    sees: Sees<'a>,
}

/// What the queries of a stretch see.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Sees<'a> {
    /// The keys at their own positions and before, from a first one on: its position in the sequence, by query; none where
    /// that is the stretch's first.
    Earlier(Option<&'a [i64]>),
    /// So many keys, all of the sequence; with what is added to the scores, `[length, keys]`.
    All(usize, &'a [f32]),
}

impl Stretch<'_> {
    /// The first key that the query at a position sees.
    #[inline(always)]
    pub fn first(&self, position: usize) -> usize {
        match self.sees {
            Sees::Earlier(Some(first)) => first[position] as usize - self.start,
            Sees::Earlier(None) | Sees::All(..) => 0,
        }
    }

    /// Keys of which the queries at positions before `end` see anything, from the stretch's first on.
    fn end(&self, end: usize) -> usize {
        match self.sees {
            Sees::Earlier(_) => end,
            Sees::All(keys, _) => keys,
        }
    }

    /// Those of a block of keys that the query at a position sees, counted in the block.
    #[inline(always)]
    pub fn seen(&self, position: usize, keys: &Range<usize>) -> Range<usize> {
        let end = self.end(position + 1) - keys.start;
        self.first(position).saturating_sub(keys.start)..end.min(keys.len())
    }

    /// What is added to the scores of the query at a position with a block of keys.
    #[inline(always)]
    pub fn bias(&self, position: usize, keys: &Range<usize>) -> Option<&[f32]> {
        match self.sees {
            Sees::Earlier(_) => None,
            Sees::All(all, bias) => Some(&bias[position * all..][keys.clone()]),
        }
    }

    /// The blocks of keys of which the queries at these positions see anything, from first to last.
    pub fn key_blocks(&self, positions: &Range<usize>) -> impl Iterator<Item = Range<usize>> {
        let (first, end) = (self.first(positions.start), self.end(positions.end));
        let starts = (first / KEYS * KEYS..end).step_by(KEYS);
        starts.map(move |start| start..(start + KEYS).min(end))
    }

    /// Those of these positions whose queries see anything of a block of keys. For the first of
    /// [`key_blocks`](Self::key_blocks), they begin with the first position.
    pub fn seeing(&self, positions: &Range<usize>, keys: &Range<usize>) -> Range<usize> {
        let Sees::Earlier(first) = self.sees else {
            return positions.clone();
        };
        let start = keys.start.max(positions.start);
        let end = first.map_or(positions.end, |first| {
            let first = &first[start..positions.end];
            start + first.partition_point(|&first| (first as usize) < self.start + keys.end)
        });
        start..end
    }

    /// The stretch's token at a position, in the batch.
    #[inline(always)]
    pub fn token(&self, position: usize, shape: AttentionShape) -> usize {
        self.sequence * shape.length + self.start + position
    }

    /// The stretch's first key, in the batch.
    #[inline(always)]
    pub fn first_key(&self, shape: AttentionShape) -> usize {
        self.sequence * shape.keys + self.start
    }
}

/// The stretches of a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stretches<'a> {
    sees: Sees<'a>,
    shape: AttentionShape,
}

impl<'a> Stretches<'a> {
    /// From the first key that each query of the batch sees; none where that is its sequence's first.
    pub fn new(first: Option<&'a [i64]>, shape: AttentionShape) -> Self {
        let sees = Sees::Earlier(first);
        Self { sees, shape }
    }

    /// Sequences whose queries see every key, with what is added to the scores, `[batch, length, keys]`.
    pub fn all(bias: &'a [f32], shape: AttentionShape) -> Self {
        let sees = Sees::All(shape.keys, bias);
        Self { sees, shape }
    }

    /// Those of a sequence, in order. One begins where a query sees itself alone, since nothing that comes later sees
    /// more.
    pub fn of_sequence(self, sequence: usize) -> impl Iterator<Item = Stretch<'a>> {
        let AttentionShape { length, keys, .. } = self.shape;
        let sees = match self.sees {
            Sees::Earlier(first) => {
                Sees::Earlier(first.map(|first| &first[sequence * length..][..length]))
            }
            Sees::All(_, bias) => {
                Sees::All(keys, &bias[sequence * length * keys..][..length * keys])
            }
        };
        let first = match sees {
            Sees::Earlier(first) => first,
            Sees::All(..) => None,
        };
        let mut start = 0;
        std::iter::from_fn(move || {
            let begins = |&position: &usize| first.is_some_and(|f| f[position] == position as i64);
            let end = (start + 1..length).find(begins).unwrap_or(length);
            let found = start..end;
            start = end;
            (!found.is_empty()).then(|| Stretch {
                sequence,
                start: found.start,
                length: found.len(),
                sees: match sees {
                    Sees::Earlier(first) => Sees::Earlier(
                        first
                            .map(|first| &first[found.clone()])
                            .filter(|first| first.iter().any(|&key| key != found.start as i64)),
                    ),
                    all => all,
                },
            })
        })
    }

    /// Those of all sequences, in order.
    pub fn of_batch(self) -> impl Iterator<Item = Stretch<'a>> {
        (0..self.shape.batch).flat_map(move |sequence| self.of_sequence(sequence))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_and_windows() {
        // Padding, padding, a document of three, a window of two over four.
        let first = [0, 1, 2, 2, 2, 5, 5, 6, 7];
        let shape = AttentionShape {
            batch: 1,
            length: 9,
            keys: 9,
            heads: 1,
            kv_heads: 1,
            head_dim: 2,
            rotary_dim: 2,
            window: None,
            scale: 1.0,
            sinks: false,
        };
        let stretches: Vec<_> = Stretches::new(Some(&first), shape).of_batch().collect();
        let places = |stretches: &[Stretch<'_>]| -> Vec<(usize, usize)> {
            stretches.iter().map(|s| (s.start, s.length)).collect()
        };
        assert_eq!(places(&stretches), [(0, 1), (1, 1), (2, 3), (5, 4)]);
        let firsts = |stretch: &Stretch<'_>| -> Vec<usize> {
            (0..stretch.length).map(|p| stretch.first(p)).collect()
        };
        assert_eq!(firsts(&stretches[2]), [0, 0, 0]);
        assert_eq!(firsts(&stretches[3]), [0, 0, 1, 2]);

        let mut plain = shape;
        plain.batch = 2;
        let stretches: Vec<_> = Stretches::new(None, plain).of_batch().collect();
        assert_eq!(places(&stretches), [(0, 9), (0, 9)]);
        plain.length = 0;
        assert_eq!(Stretches::new(None, plain).of_batch().count(), 0);
    }

    #[test]
    fn blocks_of_which_nothing_is_seen_are_left_out() {
        // A window of 100 over 400 positions.
        let first: Vec<i64> = (0..400).map(|i| (i - 99).max(0)).collect();
        let shape = AttentionShape {
            batch: 1,
            length: 400,
            keys: 400,
            heads: 1,
            kv_heads: 1,
            head_dim: 2,
            rotary_dim: 2,
            window: None,
            scale: 1.0,
            sinks: false,
        };
        let stretches: Vec<_> = Stretches::new(Some(&first), shape).of_batch().collect();
        let [stretch] = stretches[..] else {
            panic!("{stretches:?}");
        };
        let positions = 240..300;
        // From key 141 on, which only the queries below 128 + 128 + 99 see.
        let blocks: Vec<_> = stretch.key_blocks(&positions).collect();
        assert_eq!(blocks, [128..256, 256..300]);
        let seeing = |keys| stretch.seeing(&positions, &keys);
        assert_eq!(seeing(128..256), 240..300);
        assert_eq!(seeing(256..300), 256..300);
        assert_eq!(stretch.seeing(&(128..256), &(0..128)), 128..227);
    }
}
