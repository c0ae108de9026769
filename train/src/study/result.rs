//! What the runs of a study say together.

use firebox_model::evaluate::Evaluation;
use serde::Serialize;

use super::{Study, StudyError, StudyResult, Unit};
use crate::report::{Recorded, Report};

/// A variant, and its difference from the first one.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compared {
    /// Its name.
    pub name: String,
    /// Number of parameters.
    pub parameters: u64,
    /// Number of parameters that a token passes through.
    pub active_parameters: u64,
    /// Optimizer steps.
    pub steps: u64,
    /// Tokens of training.
    pub tokens: u64,
    /// Mean seconds of training; of the runs that finished, where some did.
    pub seconds: f64,
    /// The seeds with which training diverged; their runs have no loss at the end.
    pub diverged: Vec<u64>,
    /// Held-out loss at the end, in nats per token; `None` where all runs diverged.
    pub loss: Option<Spread>,
    /// The same in bits per byte, which other tokenizers can be compared with.
    pub bits_per_byte: Option<Spread>,
    /// Loss less that of the first variant with the same seed, in the result's [`Unit`]; `None` for the first one, and where no
    /// seed has runs of both that finished.
    pub difference: Option<Spread>,
    /// How many times sooner this variant reaches the loss that the first one ends with, by seconds of training; below 1, the first
    /// one reaches this one's last loss that much sooner. The geometric mean over seeds; `None` for the first variant, and
    /// where one of two runs never reaches the other's loss.
    pub speed_up: Option<f64>,
}

/// Numbers of several seeds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Spread {
    /// Of each seed.
    pub values: Vec<f64>,
    /// Their mean.
    pub mean: f64,
    /// Their standard deviation (with n − 1); `None` for a single one.
    pub deviation: Option<f64>,
    /// Half the width of the interval around the mean that holds the true one with a probability of 95 %, by Student's t
    /// distribution; `None` for a single one.
    pub confidence: Option<f64>,
}

impl Spread {
    /// `None` without values.
    pub(super) fn new(values: Vec<f64>) -> Option<Self> {
        let count = values.len();
        if count == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / count as f64;
        let deviation = (count > 1).then(|| {
            let squares = values.iter().map(|value| (value - mean).powi(2));
            (squares.sum::<f64>() / (count - 1) as f64).sqrt()
        });
        let confidence =
            deviation.map(|deviation| student_t(count - 1) * deviation / (count as f64).sqrt());
        Some(Self {
            values,
            mean,
            deviation,
            confidence,
        })
    }

    /// Whether the interval of confidence leaves out 0.
    pub fn is_sure(&self) -> bool {
        self.confidence
            .is_some_and(|confidence| self.mean.abs() > confidence)
    }
}

/// The quantile 0.975 of Student's t distribution with so many degrees of freedom, from 1.
fn student_t(freedom: usize) -> f64 {
    const QUANTILES: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
        2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
        2.052, 2.048, 2.045, 2.042,
    ];
    // Beyond the table by the first terms of Cornish and Fisher's expansion around the normal quantile.
    let (z, n) = (1.959_964_f64, freedom as f64);
    let beyond = z
        + (z.powi(3) + z) / (4.0 * n)
        + (5.0 * z.powi(5) + 16.0 * z.powi(3) + 3.0 * z) / (96.0 * n * n);
    QUANTILES
        .get(freedom.wrapping_sub(1))
        .copied()
        .unwrap_or(beyond)
}

impl StudyResult {
    /// Compares the runs of a study: variant by variant, and of each one seed by seed.
    pub(super) fn new(study: Study, report: Report) -> Result<Self, StudyError> {
        let all_have = |count: fn(&Evaluation) -> u64| {
            let mut counts = report.runs.iter().filter_map(last_validation).map(count);
            counts
                .next()
                .is_none_or(|first| counts.all(|count| count == first))
        };
        let is_same_text = all_have(|whole| whole.bytes);
        let unit = match is_same_text && all_have(|whole| whole.tokens) {
            true => Unit::NatsPerToken,
            false => Unit::BitsPerByte,
        };
        let by_variant: Vec<&[Recorded]> = report.runs.chunks(study.seeds.len()).collect();
        let first = by_variant[0];
        let variants = study.variants.iter().zip(&by_variant).enumerate();
        let compared = variants.map(|(place, (variant, runs))| {
            let of_finished = |value: fn(&Recorded) -> f64| {
                let finished = runs.iter().filter(|run| has_finished(run));
                Spread::new(finished.map(value).collect())
            };
            let pairs = || {
                let pairs = runs.iter().zip(first);
                pairs.filter(|(run, first)| has_finished(run) && has_finished(first))
            };
            let diverged = study.seeds.iter().zip(*runs);
            let diverged = diverged.filter(|(_, run)| !has_finished(run));
            let finished: Vec<&Recorded> = runs.iter().filter(|run| has_finished(run)).collect();
            let counted = match finished.is_empty() {
                false => finished,
                true => runs.iter().collect(),
            };
            let last: Vec<_> = counted.iter().filter_map(|run| run.last()).collect();
            let seconds = last.iter().map(|last| last.seconds).sum::<f64>();
            Compared {
                name: variant.name.clone(),
                parameters: runs[0].parameters,
                active_parameters: runs[0].active_parameters,
                steps: runs[0].steps,
                tokens: last.iter().map(|last| last.tokens).max().unwrap_or(0),
                seconds: seconds / counted.len() as f64,
                diverged: diverged.map(|(&seed, _)| seed).collect(),
                loss: of_finished(|run| final_loss(run, Unit::NatsPerToken)),
                bits_per_byte: of_finished(|run| final_loss(run, Unit::BitsPerByte)),
                difference: (place > 0)
                    .then(|| {
                        let differences = pairs()
                            .map(|(run, first)| final_loss(run, unit) - final_loss(first, unit));
                        Spread::new(differences.collect())
                    })
                    .flatten(),
                speed_up: (place > 0).then(|| mean_speed_up(pairs(), unit)).flatten(),
            }
        });
        let compared = compared.collect();
        Ok(Self {
            study,
            unit,
            is_same_text,
            compared,
            report,
        })
    }
}

/// Whether a run finished: its last step is always validated.
fn has_finished(run: &Recorded) -> bool {
    run.validations
        .last()
        .is_some_and(|last| last.step == run.steps)
}

fn last_validation(run: &Recorded) -> Option<&Evaluation> {
    Some(&run.validations.last()?.validation.whole)
}

impl Unit {
    /// A loss in this unit.
    pub(super) fn of(self, whole: &Evaluation) -> f64 {
        match self {
            Self::NatsPerToken => whole.nats_per_token,
            Self::BitsPerByte => whole.bits_per_byte,
        }
    }
}

fn final_loss(run: &Recorded, unit: Unit) -> f64 {
    last_validation(run).map_or(f64::NAN, |whole| unit.of(whole))
}

fn mean_speed_up<'a>(
    pairs: impl Iterator<Item = (&'a Recorded, &'a Recorded)>,
    unit: Unit,
) -> Option<f64> {
    let logs = pairs.map(|(run, first)| {
        let [curve, other] = [run, first].map(|run| curve(run, unit));
        Some(speed_up(&curve, &other)?.ln())
    });
    let logs: Vec<f64> = logs.collect::<Option<_>>()?;
    (!logs.is_empty()).then(|| (logs.iter().sum::<f64>() / logs.len() as f64).exp())
}

/// Seconds of training and held-out losses.
fn curve(run: &Recorded, unit: Unit) -> Vec<(f64, f64)> {
    let points = run.validations.iter();
    points
        .map(|record| (record.seconds, unit.of(&record.validation.whole)))
        .collect()
}

/// How much less time the better one of two needs for the other's last loss, above 1 where it is `curve`.
fn speed_up(curve: &[(f64, f64)], other: &[(f64, f64)]) -> Option<f64> {
    let (&(seconds, loss), &(of_other, loss_of_other)) = curve.last().zip(other.last())?;
    match loss <= loss_of_other {
        true => Some(of_other / reached(curve, loss_of_other)?),
        false => Some(reached(other, loss)? / seconds),
    }
}

/// When a curve comes down to a loss for the first time, on straight lines between its points.
fn reached(curve: &[(f64, f64)], loss: f64) -> Option<f64> {
    let below = curve.iter().position(|point| point.1 <= loss)?;
    let (seconds, found) = curve[below];
    // What is there at once has taken no time.
    let (before, above) = *curve.get(below.checked_sub(1)?)?;
    Some(before + (seconds - before) * (above - loss) / (above - found))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spread_of_three() {
        let spread = Spread::new(vec![1.0, 2.0, 3.0]).unwrap();
        assert_eq!((spread.mean, spread.deviation), (2.0, Some(1.0)));
        // 4.303 / √3
        assert!((spread.confidence.unwrap() - 2.4844).abs() < 1e-3);
        assert!(!spread.is_sure());
        assert!(Spread::new(vec![2.0, 2.1, 2.2]).unwrap().is_sure());
        assert_eq!(Spread::new(Vec::new()), None);
        let single = Spread::new(vec![2.0]).unwrap();
        assert_eq!((single.deviation, single.is_sure()), (None, false));
    }

    #[test]
    fn quantiles_continue_beyond_the_table() {
        // 2.0395 and 1.9840 in printed tables.
        assert!((student_t(31) - 2.0395).abs() < 1e-3);
        assert!((student_t(100) - 1.9840).abs() < 1e-3);
    }

    #[test]
    fn the_better_one_saves_time() {
        let slow = [(0.0, 5.0), (10.0, 4.0), (20.0, 3.0)];
        let fast = [(0.0, 5.0), (10.0, 3.0), (20.0, 2.0)];
        assert_eq!(speed_up(&fast, &slow), Some(2.0));
        assert_eq!(speed_up(&slow, &fast), Some(0.5));
        assert_eq!(speed_up(&slow, &slow), Some(1.0));
        // Between two points.
        assert_eq!(reached(&slow, 3.5), Some(15.0));
        assert_eq!(reached(&slow, 2.0), None);
    }
}
