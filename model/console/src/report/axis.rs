//! Axes of charts: positions of values, and ticks.

/// The scale of an axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// Equal differences have equal lengths.
    Linear,
    /// Equal ratios have equal lengths; zero is placed at the lower edge, below all other values.
    Log,
}

/// An axis.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Axis {
    scale: Scale,
    /// In units of the scale: values, or their decimal logarithms.
    low: f64,
    high: f64,
    /// Distance between ticks, in the same units.
    step: f64,
    /// Whether the values of a logarithmic axis include zero.
    pub(super) has_zero: bool,
}

impl Axis {
    /// An axis from tick to tick that contains all finite values, with about `ticks` ticks.
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
        let (low, high) = if low <= high { (low, high) } else { (0.0, 1.0) };
        // A single value, or several that are equal up to rounding, need an axis around them.
        let least = f64::EPSILON * 16.0 * low.abs().max(high.abs());
        let (low, high) = match high - low > least {
            true => (low, high),
            false if low == 0.0 => (0.0, 1.0),
            false if scale == Scale::Log => (low - 0.5, high + 0.5),
            false => (low - low.abs() / 2.0, high + high.abs() / 2.0),
        };
        let step = match scale {
            Scale::Linear => nice_step((high - low) / ticks as f64),
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

    /// An axis that ends exactly at the smallest and the largest finite value.
    pub(super) fn tight(values: impl Iterator<Item = f64> + Clone, ticks: usize) -> Self {
        let (first, last) = values
            .clone()
            .filter(|value| value.is_finite())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| {
                (low.min(value), high.max(value))
            });
        let integers = values.clone().all(|value| value.fract() == 0.0);
        let mut axis = Self::new(Scale::Linear, values, ticks);
        if first < last {
            (axis.low, axis.high) = (first, last);
        }
        if integers {
            axis.step = axis.step.max(1.0);
        }
        axis
    }

    /// Position of a value on the axis, from 0 to 1; `None` if it cannot be placed.
    pub(super) fn position(&self, value: f64) -> Option<f64> {
        if self.has_zero && value <= 0.0 {
            return Some(0.0);
        }
        let value = scaled(self.scale, value)?;
        Some((value - self.low) / (self.high - self.low))
    }

    /// Positions and labels of the ticks, in ascending order.
    pub(super) fn ticks(&self) -> Vec<(f64, String)> {
        let first = (self.low / self.step - 1e-9).ceil() as i64;
        let last = (self.high / self.step + 1e-9).floor() as i64;
        let position = |tick: f64| (tick - self.low) / (self.high - self.low);
        (first..=last)
            .map(|index| {
                let tick = index as f64 * self.step;
                let label = match self.scale {
                    Scale::Log if self.has_zero && index == first => "0".to_owned(),
                    Scale::Log => format!("1e{tick:.0}"),
                    Scale::Linear => decimal(tick, self.step),
                };
                (position(tick), label)
            })
            .collect()
    }
}

/// A value in units of the scale; `None` if it cannot be placed.
fn scaled(scale: Scale, value: f64) -> Option<f64> {
    match scale {
        Scale::Linear => value.is_finite().then_some(value),
        Scale::Log => (value > 0.0 && value.is_finite()).then(|| value.log10()),
    }
}

/// The smallest of 1, 2 and 5 times a power of ten that is at least `step`.
fn nice_step(step: f64) -> f64 {
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
    // Avoids "-0".
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
    fn zero_is_below_all_other_values_on_a_logarithmic_axis() {
        let axis = Axis::new(Scale::Log, [0.0, 1e-7, 1e-5].into_iter(), 5);
        assert_eq!(axis.position(0.0), Some(0.0));
        assert!(axis.position(1e-7).unwrap() > 0.0);
        assert_eq!(labels(&axis)[0], "0");
        let none = Axis::new(Scale::Log, [1e-7].into_iter(), 5);
        assert_eq!(none.position(0.0), None);
    }

    proptest! {
        #[test]
        fn every_value_has_a_position(values in prop::collection::vec(-1e6f64..1e6, 0..9), log: bool) {
            let scale = if log { Scale::Log } else { Scale::Linear };
            let axis = Axis::new(scale, values.iter().copied(), 5);
            for &value in &values {
                let position = axis.position(value).unwrap();
                prop_assert!((-1e-9..=1.0 + 1e-9).contains(&position), "{value} at {position}");
            }
            let ticks = axis.ticks();
            prop_assert!((2..=12).contains(&ticks.len()), "{ticks:?}");
            prop_assert!(ticks.is_sorted_by(|a, b| a.0 < b.0));
        }
    }
}
