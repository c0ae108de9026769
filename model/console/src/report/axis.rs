//! From values to places on an axis, and the ticks along it.

/// How values are spread over an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Equal differences are equally far apart.
    Linear,
    /// Equal ratios are; zero, which has no place, stands on the edge below all others.
    Log,
}

/// An axis that holds some values.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    scale: Scale,
    /// In units of the scale: values, or their decimal logarithms.
    low: f64,
    high: f64,
    /// Distance of ticks in the same units.
    step: f64,
    /// A zero is among the values of a logarithmic axis.
    pub(super) has_zero: bool,
}

impl Axis {
    /// An axis from tick to tick that holds all finite values, with about `ticks` ticks.
    pub(super) fn new(
        scale: Scale,
        values: impl Iterator<Item = f64> + Clone,
        ticks: usize,
    ) -> Self {
        let has_zero = scale == Scale::Log && values.clone().any(|value| value <= 0.0);
        let (low, high) = values
            .filter_map(|value| scaled(scale, value))
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            });
        let (low, high) = match low <= high {
            true => (low, high),
            false => (0.0, 1.0),
        };
        // One value, or several that are the same to rounding, still want an axis around them.
        let least = f64::EPSILON * 16.0 * low.abs().max(high.abs());
        let (low, high) = match high - low > least {
            true => (low, high),
            false if low == 0.0 => (0.0, 1.0),
            false if scale == Scale::Log => (low - 0.5, high + 0.5),
            false => (low - low.abs() / 2.0, high + high.abs() / 2.0),
        };
        let step = match scale {
            Scale::Linear => pleasant((high - low) / ticks as f64),
            Scale::Log => ((high - low) / ticks as f64).ceil().max(1.0),
        };
        let mut low = (low / step + 1e-9).floor() * step;
        let high = (high / step - 1e-9).ceil() * step;
        if has_zero {
            low -= step;
        }
        Self {
            scale,
            low,
            high,
            step,
            has_zero,
        }
    }

    /// An axis that ends where the finite values do, for one that is read by its curves and not by its ends.
    pub(super) fn tight(values: impl Iterator<Item = f64> + Clone, ticks: usize) -> Self {
        let (first, last) = values
            .clone()
            .filter(|value| value.is_finite())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            });
        let whole = values.clone().all(|value| value.fract() == 0.0);
        let mut axis = Self::new(Scale::Linear, values, ticks);
        if first < last {
            (axis.low, axis.high) = (first, last);
        }
        if whole {
            axis.step = axis.step.max(1.0);
        }
        axis
    }

    /// Where a value stands, from 0 to 1; none where it has no place.
    pub(super) fn place(&self, value: f64) -> Option<f64> {
        if self.has_zero && value <= 0.0 {
            return Some(0.0);
        }
        let value = scaled(self.scale, value)?;
        Some((value - self.low) / (self.high - self.low))
    }

    /// Places and labels of the ticks, in rising order.
    pub(super) fn ticks(&self) -> Vec<(f64, String)> {
        let first = (self.low / self.step - 1e-9).ceil() as i64;
        let last = (self.high / self.step + 1e-9).floor() as i64;
        let place = |tick: f64| (tick - self.low) / (self.high - self.low);
        (first..=last)
            .map(|number| {
                let tick = number as f64 * self.step;
                let label = match self.scale {
                    Scale::Log if self.has_zero && number == first => "0".to_owned(),
                    Scale::Log => format!("1e{tick:.0}"),
                    Scale::Linear => decimal(tick, self.step),
                };
                (place(tick), label)
            })
            .collect()
    }
}

/// In units of the scale.
fn scaled(scale: Scale, value: f64) -> Option<f64> {
    match scale {
        Scale::Linear => value.is_finite().then_some(value),
        Scale::Log => (value > 0.0 && value.is_finite()).then(|| value.log10()),
    }
}

/// The least of 1, 2 and 5 times a power of ten that is no less.
fn pleasant(step: f64) -> f64 {
    let power = 10f64.powf(step.log10().floor());
    [1.0, 2.0, 5.0, 10.0]
        .into_iter()
        .map(|factor| factor * power)
        .find(|&candidate| candidate >= step * (1.0 - 1e-9))
        .unwrap_or(step)
}

/// A multiple of `step` with as many decimals as the step has.
fn decimal(tick: f64, step: f64) -> String {
    if !(1e-4..1e7).contains(&step) {
        return format!("{tick:.1e}");
    }
    let decimals = (-step.log10().floor()).max(0.0) as usize;
    // No minus before a zero.
    format!("{:.decimals$}", tick + 0.0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn labels(axis: &Axis) -> Vec<String> {
        axis.ticks().into_iter().map(|(_, label)| label).collect()
    }

    #[test]
    fn ticks_are_round() {
        let axis = Axis::new(Scale::Linear, [0.13, 0.98].into_iter(), 5);
        assert_eq!(labels(&axis), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
        let axis = Axis::new(Scale::Log, [3e-7, 2e-3].into_iter(), 5);
        assert_eq!(
            labels(&axis),
            ["1e-7", "1e-6", "1e-5", "1e-4", "1e-3", "1e-2"]
        );
        let layers = Axis::tight([0.0, 1.0, 2.0].into_iter(), 8);
        assert_eq!(labels(&layers), ["0", "1", "2"]);
    }

    #[test]
    fn zero_stands_below_all_else_on_a_logarithmic_axis() {
        let axis = Axis::new(Scale::Log, [0.0, 1e-7, 1e-5].into_iter(), 5);
        assert_eq!(axis.place(0.0), Some(0.0));
        assert!(axis.place(1e-7).unwrap() > 0.0);
        assert_eq!(labels(&axis)[0], "0");
        let none = Axis::new(Scale::Log, [1e-7].into_iter(), 5);
        assert_eq!(none.place(0.0), None);
    }

    proptest! {
        #[test]
        fn every_value_has_a_place(values in prop::collection::vec(-1e6f64..1e6, 0..9), log: bool) {
            let scale = if log { Scale::Log } else { Scale::Linear };
            let axis = Axis::new(scale, values.iter().copied(), 5);
            for &value in &values {
                let place = axis.place(value).unwrap();
                prop_assert!((-1e-9..=1.0 + 1e-9).contains(&place), "{value} at {place}");
            }
            let ticks = axis.ticks();
            prop_assert!((2..=12).contains(&ticks.len()), "{ticks:?}");
            prop_assert!(ticks.is_sorted_by(|a, b| a.0 < b.0));
        }
    }
}
