//! Scalings of the rotary frequencies.

use super::rules::{ConfigError, LARGEST_SIZE, require};

/// A scaling of the rotary frequencies; see [`rope`](crate::rope).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RopeScaling {
    /// Position interpolation (arXiv 2306.15595).
    Linear {
        /// Divisor of all frequencies, at least 1.
        factor: f64,
    },
    /// That of Llama 3.1 (arXiv 2407.21783).
    Llama3 {
        /// Divisor of the lowest frequencies, at least 1.
        factor: f64,
        /// Frequencies of fewer rotations than this in the original context are divided.
        low_freq_factor: f64,
        /// Frequencies of more rotations than this in the original context stay as they are.
        high_freq_factor: f64,
        /// Context of the pretraining, in tokens.
        original_context: usize,
    },
    /// YaRN (arXiv 2309.00071).
    Yarn {
        /// Divisor of the lowest frequencies, at least 1.
        factor: f64,
        /// Context of the pretraining, in tokens.
        original_context: usize,
        /// Frequencies of more rotations than this in the original context stay as they are.
        beta_fast: f64,
        /// Frequencies of fewer rotations than this in the original context are divided.
        beta_slow: f64,
        /// Factor of rotated queries and keys; `0.1 · ln(factor) + 1` if absent.
        attention_factor: Option<f64>,
        /// Whether the two indices between which frequencies are mixed are rounded outwards.
        truncate: bool,
        /// The scores of latent attention are multiplied by `(0.1 · mscale_all_dim · ln(factor) + 1)²` (DeepSeek-V2,
        /// arXiv 2405.04434, in its published code); 0 leaves them as they are, and is what other attention has.
        mscale_all_dim: f64,
    },
}

impl RopeScaling {
    /// Checks every rule.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        let between = |key: &'static str, value: f64, least: f64| {
            require(
                (least..=1e6).contains(&value),
                key,
                format!("{value:?}"),
                format!("must lie between {least} and 1000000"),
                "a factor of 4 is for a context four times as long as that of the pretraining",
            )
        };
        let context = |original: usize| {
            require(
                (1..=LARGEST_SIZE).contains(&original),
                "rope_scaling.original_context",
                original,
                format!("must lie between 1 and {LARGEST_SIZE}"),
                "the context of the pretraining, in tokens",
            )
        };
        let ordered = |low: &'static str, low_value: f64, high: &str, high_value: f64| {
            require(
                low_value > 0.0 && low_value < high_value && high_value.is_finite(),
                low,
                format!("{low_value:?}"),
                format!("must be above 0 and below {high} = {high_value}"),
                "1 and 4 are common in Llama 3, 1 and 32 in YaRN",
            )
        };
        match *self {
            Self::Linear { factor } => between("rope_scaling.factor", factor, 1.0),
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => {
                between("rope_scaling.factor", factor, 1.0)?;
                context(original_context)?;
                ordered(
                    "rope_scaling.low_freq_factor",
                    low_freq_factor,
                    "high_freq_factor",
                    high_freq_factor,
                )
            }
            Self::Yarn {
                factor,
                original_context,
                beta_fast,
                beta_slow,
                attention_factor,
                mscale_all_dim,
                ..
            } => {
                between("rope_scaling.mscale_all_dim", mscale_all_dim, 0.0)?;
                between("rope_scaling.factor", factor, 1.0)?;
                context(original_context)?;
                ordered("rope_scaling.beta_slow", beta_slow, "beta_fast", beta_fast)?;
                between(
                    "rope_scaling.attention_factor",
                    attention_factor.unwrap_or(1.0),
                    1e-6,
                )
            }
        }
    }
}
