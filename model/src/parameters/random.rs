//! Normally distributed values, each of which can be drawn alone.

use std::ops::Range;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use rayon::prelude::*;
use sha2::{Digest, Sha256};

use crate::parallel::Slice;

/// Values that one thread draws at once.
const CHUNK: usize = 1 << 16;

/// Values whose words are taken from the generator together.
const BLOCK: usize = 256;

/// Random values of one parameter, normally distributed with mean 0.
///
/// A value depends on the seed, the parameter's path and its own place in the parameter, counted row by row, and on
/// nothing else: neither on the device, the platform or the number of threads, nor on what else is drawn. Whoever needs a
/// part of a parameter draws that part, with the same bits: rows `a..b` of a matrix with `n` columns have the places
/// `a * n..b * n`, and rows `a..b` of expert `e` of a stack `[experts, m, n]` the places `(e * m + a) * n..(e * m + b) * n`.
///
/// The values are drawn by inversion: word number `place` of a counter-based generator (ChaCha8), whose stream is the hash
/// of the path, is a uniform number, of which the inverse of the normal distribution is taken in f64, by arithmetic that
/// is the same on every platform.
#[derive(Debug, Clone)]
pub struct RandomValues {
    generator: ChaCha8Rng,
    deviation: f64,
}

impl RandomValues {
    /// The values of the parameter at `path`, of this standard deviation.
    pub fn new(seed: u64, path: &str, deviation: f64) -> Self {
        let digest = Sha256::digest(path.as_bytes());
        let stream = digest[..8]
            .iter()
            .fold(0, |word, byte| (word << 8) | u64::from(*byte));
        let mut generator = ChaCha8Rng::seed_from_u64(seed);
        generator.set_stream(stream);
        Self {
            generator,
            deviation,
        }
    }

    /// The values in a range of places, drawn by all threads.
    pub fn draw(&self, places: Range<usize>) -> Vec<f32> {
        self.draw_runs(places.len(), [places].into_iter())
    }

    /// The values of a part of the parameter, in its own row-major order, drawn by all threads.
    pub fn of(&self, slice: &Slice) -> Vec<f32> {
        self.draw_runs(slice.elements(), slice.runs())
    }

    /// The values of ranges of places, of so many in all.
    fn draw_runs(&self, length: usize, runs: impl Iterator<Item = Range<usize>>) -> Vec<f32> {
        let mut values = vec![0.0; length];
        let mut rest = values.as_mut_slice();
        let mut chunks = Vec::new();
        for run in runs {
            let (values, after) = rest.split_at_mut(run.len());
            rest = after;
            let starts = run.step_by(CHUNK);
            chunks.extend(starts.zip(values.chunks_mut(CHUNK)));
        }
        let chunks = chunks.into_par_iter();
        chunks.for_each(|(first, values)| self.fill(first, values));
        values
    }

    /// Draws the values from a place on.
    fn fill(&self, first: usize, values: &mut [f32]) {
        let mut generator = self.generator.clone();
        generator.set_word_pos(first as u128);
        let mut words = [0; 4 * BLOCK];
        let mut centred = [0.0; BLOCK];
        for block in values.chunks_mut(BLOCK) {
            generator.fill_bytes(&mut words[..4 * block.len()]);
            for (centred, word) in centred.iter_mut().zip(words.as_chunks::<4>().0) {
                *centred = centre(u32::from_le_bytes(*word));
            }
            // Most values need no branch, so that these are computed side by side.
            for (value, &centred) in block.iter_mut().zip(&centred) {
                *value = (middle(centred) * self.deviation) as f32;
            }
            for (value, &centred) in block.iter_mut().zip(&centred) {
                if centred.abs() > MIDDLE {
                    *value = (tail(centred) * self.deviation) as f32;
                }
            }
        }
    }
}

/// A uniform number between -1/2 and 1/2, neither of which it reaches.
fn centre(word: u32) -> f64 {
    const WORDS: f64 = (1u64 << 32) as f64;
    // The sign bit flipped is the word less 2³¹, in a type that every processor converts at once.
    (f64::from((word ^ (1 << 31)) as i32) + 0.5) / WORDS
}

/// Where the tails begin.
const MIDDLE: f64 = 0.425;

/// The inverse of the normal distribution, at `centred` + 1/2, up to [`MIDDLE`] from its middle: algorithm AS 241, PPND7
/// (Wichura, Applied Statistics 37, 1988), whose relative error is at most about 1e-7.
fn middle(centred: f64) -> f64 {
    let r = MIDDLE * MIDDLE - centred * centred;
    let above = ((59.109_374_720 * r + 159.291_132_02) * r + 50.434_271_938) * r + 3.387_132_717_9;
    let below = ((67.187_563_600 * r + 78.757_757_664) * r + 17.895_169_469) * r + 1.0;
    centred * above / below
}

/// The same in the tails, up to 6.6 standard deviations; [`centre`] goes to 6.4.
fn tail(centred: f64) -> f64 {
    // The standard library's logarithm is the platform's, and differs in its last bits.
    let r = (-libm::log(0.5 - centred.abs())).sqrt() - 1.6;
    let above =
        ((0.170_238_211_03 * r + 1.306_728_481_6) * r + 2.756_815_390_0) * r + 1.423_437_277_7;
    let below = (0.120_211_329_75 * r + 0.737_001_642_50) * r + 1.0;
    (above / below).copysign(centred)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn inverse(centred: f64) -> f64 {
        match centred.abs() > MIDDLE {
            true => tail(centred),
            false => middle(centred),
        }
    }

    /// Quantiles of the normal distribution to 12 digits.
    #[test]
    fn the_inverse_is_that_of_the_normal_distribution() {
        for (probability, expected) in [
            (0.5, 0.0),
            (0.75, 0.674_489_750_196),
            (0.925, 1.439_531_470_938),
            (0.926, 1.446_632_065_385),
            (0.975, 1.959_963_984_540),
            (0.999, 3.090_232_306_168),
            (1.0 - 1e-6, 4.753_424_308_823),
        ] {
            for sign in [1.0, -1.0] {
                let found = inverse(sign * (probability - 0.5));
                let error = (found - sign * expected).abs();
                assert!(error <= 2e-7 * expected, "{probability}: {found}");
            }
        }
        let [least, most] = [0, u32::MAX].map(|word| inverse(centre(word)));
        assert_eq!(least, -most);
        assert!((most - 6.337_957_754_554).abs() < 1e-6, "{most}");
    }

    #[test]
    fn values_are_distributed_normally() {
        let count = 1_000_000;
        let values = RandomValues::new(5, "a.path", 2.0).draw(0..count);
        for (bound, probability) in [
            (-6.0, 0.001_349_898),
            (-2.0, 0.158_655_254),
            (0.0, 0.5),
            (1.0, 0.691_462_461),
            (4.0, 0.977_249_868),
        ] {
            let below = values.iter().filter(|&&value| value < bound).count() as f64;
            let deviation = (count as f64 * probability * (1.0 - probability)).sqrt();
            let off = (below - count as f64 * probability) / deviation;
            assert!(off.abs() < 4.0, "{off} standard deviations at {bound}");
        }
        // Neighbours have nothing to do with each other.
        let products = values.windows(2).map(|pair| f64::from(pair[0] * pair[1]));
        let correlation = products.sum::<f64>() / 4.0 / count as f64;
        assert!(
            correlation.abs() < 4.0 / (count as f64).sqrt(),
            "{correlation}"
        );
    }

    /// So that the same seed gives the same model everywhere, and from now on.
    #[test]
    fn values_are_the_same_on_every_platform() {
        let values = RandomValues::new(7, "blocks.0.attention.query", 0.02).draw(0..8);
        let bits: Vec<u32> = values.iter().map(|value| value.to_bits()).collect();
        let expected = [
            0x3c4d_dba1,
            0x3aba_2d7b,
            0x3be6_d222,
            0xbba1_cf35,
            0x3c0c_d4fe,
            0xbcc9_112e,
            0xbc6e_5497,
            0xbd07_b759,
        ];
        assert_eq!(bits, expected, "{values:?}");
    }

    #[test]
    fn an_expert_and_rows_of_it_are_parts_of_the_stack() {
        let [experts, rows, columns] = [5, 30, 700];
        let source = RandomValues::new(3, "experts.gate", 0.5);
        let whole = source.draw(0..experts * rows * columns);
        let size = rows * columns;
        for (expert, stack) in whole.chunks(size).enumerate() {
            assert_eq!(source.draw(expert * size..(expert + 1) * size), stack);
            let first = expert * rows + 11;
            let part = source.draw(first * columns..(first + 3) * columns);
            assert_eq!(part, stack[11 * columns..14 * columns]);
            // Ranges of each dimension, columns too.
            let ranges = vec![
                vec![expert..expert + 1, 0..1],
                vec![3..9],
                vec![5..40, 5..6],
            ];
            let part = Slice::new([experts, rows, columns], ranges);
            assert_eq!(source.of(&part), part.take(&whole));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn any_part_is_the_same_part_of_the_whole(
            seed: u64, length in 0..3 * CHUNK, bounds in [0.0..=1.0, 0.0..=1.0],
        ) {
            let source = RandomValues::new(seed, "head", 1.0);
            let whole = source.draw(0..length);
            let mut ends = bounds.map(|bound: f64| (bound * length as f64) as usize);
            ends.sort_unstable();
            let [start, end] = ends;
            prop_assert_eq!(&source.draw(start..end), &whole[start..end]);
        }
    }
}
