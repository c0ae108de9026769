//! Noise that is a pure function of where it is used.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};

/// The step of SplitMix64: 2⁶⁴ divided by the golden ratio.
const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

/// The noise of all tokens at one position of one text.
///
/// ChaCha makes a key of the seed, the number of the text and the position; the tokens' numbers are those of SplitMix64
/// (Steele, Lea and Flood 2014) from that key on, of which each can be computed by itself.
#[derive(Debug, Clone, Copy)]
pub struct Noise {
    key: u64,
}

impl Noise {
    /// The noise of position `position` of text `choice` of a seed.
    pub fn new(seed: u64, choice: u64, position: u64) -> Self {
        let mut bytes = [0; 32];
        for (place, number) in bytes.chunks_exact_mut(8).zip([seed, choice, position]) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        Self {
            key: ChaCha8Rng::from_seed(bytes).next_u64(),
        }
    }

    /// A number of the open interval from 0 to 1.
    pub fn uniform(self, token: u32) -> f64 {
        let state = self.key.wrapping_add(u64::from(token).wrapping_mul(GOLDEN));
        let mixed = (state ^ (state >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        let bits = (mixed ^ (mixed >> 31)) >> 12;
        (bits as f64 + 0.5) / (1u64 << 52) as f64
    }

    /// An exponentially distributed number of mean 1. Gumbel noise is minus its logarithm.
    pub fn exponential(self, token: u32) -> f64 {
        -self.uniform(token).ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_the_place_matters() {
        let places = [
            [0, 0, 0],
            [1, 0, 0],
            [0, 1, 0],
            [0, 0, 1],
            [1, 1, 0],
            [1 << 40, 0, 0],
        ];
        let noise = places.map(|[seed, choice, position]| Noise::new(seed, choice, position));
        let mut numbers: Vec<f64> = noise
            .iter()
            .flat_map(|noise| [noise.uniform(0), noise.uniform(1)])
            .collect();
        assert_eq!(numbers[0], Noise::new(0, 0, 0).uniform(0));
        numbers.sort_unstable_by(f64::total_cmp);
        numbers.dedup();
        assert_eq!(numbers.len(), 2 * places.len());
    }

    #[test]
    fn numbers_are_uniform_over_tokens_and_over_positions() {
        let check = |numbers: &mut dyn Iterator<Item = f64>| {
            let mut bins = [0u32; 20];
            let mut count = 0.0;
            for number in numbers {
                assert!(number > 0.0 && number < 1.0);
                bins[(number * 20.0) as usize] += 1;
                count += 1.0;
            }
            let expected = count / 20.0;
            let distance = |&bin: &u32| (f64::from(bin) - expected).powi(2) / expected;
            let chi_square: f64 = bins.iter().map(distance).sum();
            // Of 19 degrees of freedom: exceeded once in 10,000.
            assert!(chi_square < 50.8, "{chi_square}: {bins:?}");
        };
        check(&mut (0..100_000).map(|token| Noise::new(5, 0, 17).uniform(token)));
        check(&mut (0..100_000).map(|position| Noise::new(5, 0, position).uniform(17)));
        check(&mut (0..100_000).map(|seed| Noise::new(seed, 3, 0).uniform(0)));
    }
}
