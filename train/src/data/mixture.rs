//! How sources interleave: a pure function of their rates, computed for any index without computing
//! those before it.

/// Fractional bits of a time.
const FRACTION: u32 = 64;

/// Largest rate, and upper bound of indices, so that the arithmetic below fits into 128 bits.
pub(super) const MOST: u64 = 1 << 60;

/// Sources that take turns, each at its rate.
///
/// Turn j of a source with rate r has the time (2j + 1) / r, rounded down to a multiple of 2⁻⁶⁴. Turns
/// are ordered by time; at equal times the source with the lower number comes first. At any time τ a
/// source has had τ·r/2 turns, to within half a turn, and at τ = 2 exactly r turns. Sources with a limited
/// number of turns therefore have that number as their rate, and end together.
#[derive(Debug, Clone)]
pub(super) struct Mixture {
    rates: Vec<u64>,
}

/// Whose turn it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Turn {
    /// The source.
    pub source: usize,
    /// How many turns it has had before.
    pub number: u64,
}

impl Mixture {
    /// Sources of these rates.
    ///
    /// # Panics
    ///
    /// When there are no sources, or a rate is 0 or above [`MOST`].
    pub fn new(rates: Vec<u64>) -> Self {
        assert!(!rates.is_empty(), "a mixture of nothing");
        assert!(
            rates.iter().all(|rate| (1..=MOST).contains(rate)),
            "rates {rates:?}"
        );
        Self { rates }
    }

    /// The turn at an index of the order.
    ///
    /// # Panics
    ///
    /// When `index` is not below [`MOST`].
    pub fn turn(&self, index: u64) -> Turn {
        assert!(index < MOST, "turn {index}");
        // At time τ all sources together have had τ·(sum of rates)/2 turns, to within half a turn each.
        let sources = self.rates.len() as u64;
        let sum: u128 = self.rates.iter().map(|&rate| u128::from(rate)).sum();
        let time = |turns: u64| (u128::from(turns) << (FRACTION + 1)) / sum;
        let mut early = time(index.saturating_sub(sources));
        let mut late = time(index + sources) + 2;
        // Bisect for the time of the turn: the latest time with no more than `index` turns before it.
        while late - early > 1 {
            let middle = early.midpoint(late);
            if self.turns_before(middle) <= index {
                early = middle;
            } else {
                late = middle;
            }
        }
        let mut rest = index - self.turns_before(early);
        for (source, &rate) in self.rates.iter().enumerate() {
            let number = turns_before(rate, early);
            let now = turns_before(rate, early + 1) - number;
            if rest < now {
                return Turn {
                    source,
                    number: number + rest,
                };
            }
            rest -= now;
        }
        unreachable!("more than {index} turns up to this time")
    }

    fn turns_before(&self, time: u128) -> u64 {
        let turns = |&rate| turns_before(rate, time);
        self.rates.iter().map(turns).sum()
    }
}

/// Number of turns of a source before a time: of all j with ⌊(2j + 1) · 2⁶⁴ / rate⌋ < time.
fn turns_before(rate: u64, time: u128) -> u64 {
    let odd = (time * u128::from(rate)).div_ceil(1 << FRACTION);
    (odd / 2) as u64
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn turns(rates: &[u64]) -> impl Iterator<Item = Turn> {
        let mixture = Mixture::new(rates.to_vec());
        (0..).map(move |index| mixture.turn(index))
    }

    proptest! {
        #[test]
        fn each_source_has_its_turns_in_order_and_all_end_together(
            rates in prop::collection::vec(1u64..200, 1..6),
        ) {
            let mut had = vec![0; rates.len()];
            for turn in turns(&rates).take(rates.iter().sum::<u64>() as usize) {
                prop_assert_eq!(turn.number, had[turn.source]);
                had[turn.source] += 1;
            }
            prop_assert_eq!(had, rates);
        }

        #[test]
        fn turns_come_by_time_and_then_by_source(rates in prop::collection::vec(1u64..40, 1..6)) {
            // (2j + 1) / rate as a fraction of the product of all rates.
            let product: u64 = rates.iter().product();
            let mut expected: Vec<(u64, Turn)> = Vec::new();
            for (source, rate) in rates.iter().enumerate() {
                expected.extend((0..*rate).map(|number| ((2 * number + 1) * (product / rate), Turn { source, number })));
            }
            expected.sort_by_key(|(time, turn)| (*time, turn.source));
            let found: Vec<Turn> = turns(&rates).take(expected.len()).collect();
            prop_assert_eq!(found, expected.into_iter().map(|(_, turn)| turn).collect::<Vec<_>>());
        }

        #[test]
        fn rates_are_kept_at_every_prefix(rates in prop::collection::vec(1u64..1 << 48, 1..6)) {
            let mut had = vec![0u64; rates.len()];
            for turn in turns(&rates).take(300) {
                had[turn.source] += 1;
                // Turns divided by the rate differ between two sources by at most half a turn of each, and
                // by the rounding of times.
                for (&a, &rate_a) in had.iter().zip(&rates) {
                    for (&b, &rate_b) in had.iter().zip(&rates) {
                        let (a, b) = ((a as f64 - 0.5) / rate_a as f64, (b as f64 + 0.5) / rate_b as f64);
                        prop_assert!(a <= b * (1.0 + 1e-12) + 0.5f64.powi(64), "{} against {}", a, b);
                    }
                }
            }
        }

        #[test]
        fn far_away_turns_are_found_as_well(
            rates in prop::collection::vec(1u64..1 << 40, 1..6),
            (source, number) in (0usize..6, 0u64..1 << 40),
        ) {
            let source = source % rates.len();
            let number = number % rates[source];
            // Its index is the number of earlier turns, and of turns of lower sources at the same time.
            let time = (u128::from(2 * number + 1) << FRACTION) / u128::from(rates[source]);
            let before = |(other, &rate): (usize, &u64)| {
                turns_before(rate, if other < source { time + 1 } else { time })
            };
            let index = rates.iter().enumerate().map(before).sum();
            prop_assert_eq!(Mixture::new(rates).turn(index), Turn { source, number });
        }
    }

    #[test]
    fn two_to_one() {
        let sources: Vec<usize> = turns(&[1, 2]).take(9).map(|turn| turn.source).collect();
        // Times 1, 3, 5 and ½, 1½, 2½, …
        assert_eq!(sources, [1, 0, 1, 1, 0, 1, 1, 0, 1]);
    }
}
