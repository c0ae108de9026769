//! Random permutations of any length, computed on demand and never stored.

use sha2::{Digest, Sha256};

/// Enough for all permutations of a few numbers to be about equally frequent (see the tests).
const ROUNDS: usize = 8;

/// 2⁶⁴ divided by the golden ratio: the step of SplitMix64.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;

/// A pseudorandom permutation of `0..count`, keyed by a seed and a purpose.
///
/// A number is the index of a cell in a table of `rows × columns ≥ count` cells. A round adds a hash
/// of the column to the row, or a hash of the row to the column (a Feistel network). Every round is
/// invertible, so that no two numbers reach the same cell. If the result is not below `count`, the
/// rounds are applied again until it is (cycle walking); this is rare, because fewer than `rows` cells
/// are not below `count`.
///
/// Black and Rogaway, "Ciphers with Arbitrary Finite Domains", CT-RSA 2002, sections 4 and 5.
#[derive(Debug, Clone, Copy)]
pub struct Permutation {
    count: u64,
    rows: u64,
    columns: u64,
    keys: [u64; ROUNDS],
}

impl Permutation {
    /// A pure function of its arguments, which must stay the same in all versions: a resumed run
    /// continues in the order it started with.
    ///
    /// # Panics
    ///
    /// When `count` is 0.
    pub fn new(count: u64, seed: u64, purpose: [u64; 2]) -> Self {
        assert!(count > 0, "a permutation of nothing");
        let mut hasher = Sha256::new();
        for part in [seed].iter().chain(&purpose) {
            hasher.update(part.to_le_bytes());
        }
        let hash = hasher.finalize();
        let key = u64::from_le_bytes(std::array::from_fn(|index| hash[index]));
        // Rounded up, because three numbers in a single row could only be rotated.
        let rows = (count - 1).isqrt() + 1;
        Self {
            count,
            rows,
            columns: count.div_ceil(rows),
            keys: std::array::from_fn(|round| mix(key.wrapping_add(STEP * (round as u64 + 1)))),
        }
    }

    /// The number at the position `number`.
    ///
    /// # Panics
    ///
    /// When it is not below `count`.
    pub fn at(&self, number: u64) -> u64 {
        assert!(number < self.count, "{number} of {}", self.count);
        let mut cell = number;
        loop {
            cell = self.rounds(cell);
            if cell < self.count {
                return cell;
            }
        }
    }

    fn rounds(&self, cell: u64) -> u64 {
        let (mut row, mut column) = (cell / self.columns, cell % self.columns);
        for keys in self.keys.chunks_exact(2) {
            row = (row + below(self.rows, column ^ keys[0])) % self.rows;
            column = (column + below(self.columns, row ^ keys[1])) % self.columns;
        }
        row * self.columns + column
    }
}

/// The numbers below `count` in an order that `seed` decides.
pub fn shuffled(count: usize, seed: u64) -> Vec<usize> {
    if count == 0 {
        return Vec::new();
    }
    let permutation = Permutation::new(count as u64, seed, [0, 0]);
    (0..count as u64)
        .map(|number| permutation.at(number) as usize)
        .collect()
}

/// A hash of `value` in `0..limit`, by fixed-point multiplication. Probabilities differ from uniform by
/// less than limit · 2⁻⁶⁴, relatively.
fn below(limit: u64, value: u64) -> u64 {
    ((u128::from(mix(value)) * u128::from(limit)) >> 64) as u64
}

/// The output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
fn mix(mut value: u64) -> u64 {
    value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn all(count: u64, seed: u64, purpose: [u64; 2]) -> Vec<u64> {
        let permutation = Permutation::new(count, seed, purpose);
        (0..count).map(|number| permutation.at(number)).collect()
    }

    /// The number that goes to `place`: each round undone, in the opposite order.
    fn undo(permutation: &Permutation, place: u64) -> u64 {
        let Permutation {
            count,
            rows,
            columns,
            keys,
        } = *permutation;
        let mut cell = place;
        loop {
            let (mut row, mut column) = (cell / columns, cell % columns);
            for keys in keys.chunks_exact(2).rev() {
                column = (column + columns - below(columns, row ^ keys[1])) % columns;
                row = (row + rows - below(rows, column ^ keys[0])) % rows;
            }
            cell = row * columns + column;
            if cell < count {
                return cell;
            }
        }
    }

    proptest! {
        #[test]
        fn every_number_comes_once(count in 1u64..3000, seed: u64, purpose: [u64; 2]) {
            let mut order = all(count, seed, purpose);
            order.sort_unstable();
            prop_assert!(order.into_iter().eq(0..count));
        }

        #[test]
        fn every_place_leads_back(
            (count, number) in (1u64..1 << 60).prop_flat_map(|count| (Just(count), 0..count)),
            seed: u64,
            purpose: [u64; 2],
        ) {
            let permutation = Permutation::new(count, seed, purpose);
            let place = permutation.at(number);
            prop_assert!(place < count);
            prop_assert_eq!(undo(&permutation, place), number);
        }
    }

    #[test]
    fn few_numbers_come_in_every_order_about_equally_often() {
        for (count, orders) in [(2, 2), (3, 6), (4, 24), (5, 120)] {
            let mut counts: HashMap<Vec<u64>, u32> = HashMap::new();
            for seed in 0..200 * orders {
                *counts.entry(all(count, seed, [0, 0])).or_default() += 1;
            }
            assert_eq!(counts.len() as u64, orders, "{count} numbers");
            let (least, most) = (counts.values().min(), counts.values().max());
            assert!(
                *least.unwrap() > 100 && *most.unwrap() < 300,
                "{count} numbers: {least:?} to {most:?} times"
            );
        }
    }

    #[test]
    fn neighbours_part_and_numbers_move_as_far_as_in_a_random_order() {
        let count = 10_000;
        let order = all(count, 3, [0, 0]);
        let moved: u64 = (0..count).zip(&order).map(|(a, &b)| a.abs_diff(b)).sum();
        // A third of the length on average, ± 0.0024 (one standard deviation) for so many.
        let mean = moved as f64 / (count * count) as f64;
        assert!((mean - 1.0 / 3.0).abs() < 0.01, "{mean}");
        // Two of the pairs in a random order.
        let pairs = order
            .windows(2)
            .filter(|pair| pair[0].abs_diff(pair[1]) == 1);
        assert!(pairs.count() < 10);
        // The next number says nothing of the parity.
        let alike = order
            .windows(2)
            .filter(|pair| (pair[0] ^ pair[1]) & 1 == 0)
            .count();
        assert!((4800..5200).contains(&alike), "{alike}");
    }

    #[test]
    fn the_order_depends_on_seed_and_purpose_and_is_fixed_for_good() {
        let first = all(100, 7, [1, 2]);
        assert_eq!(first, all(100, 7, [1, 2]));
        assert_ne!(first, all(100, 8, [1, 2]));
        assert_ne!(first, all(100, 7, [1, 3]));
        assert_ne!(first, all(100, 7, [2, 2]));
        assert_eq!(all(8, 0, [0, 0]), [7, 1, 6, 4, 3, 2, 0, 5]);
    }
}
