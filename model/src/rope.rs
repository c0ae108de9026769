//! Frequencies of the rotary positions, and their scaling for contexts beyond those of pretraining.

use std::f64::consts::PI;

use firebox_kernels::rope::Frequencies;

use crate::config::{ModelConfig, RopeScaling};

/// The frequencies of a model. They are computed in f32, as in Hugging Face's `modeling_rope_utils`, so that the tables
/// agree to the last bits.
pub fn frequencies(config: &ModelConfig) -> Frequencies {
    let plain = Frequencies::new(config.rotary_dim, config.rope_theta);
    match &config.rope_scaling {
        None => plain,
        Some(scaling) => scaled(plain, scaling, config),
    }
}

fn scaled(plain: Frequencies, scaling: &RopeScaling, config: &ModelConfig) -> Frequencies {
    let each = |scale: &dyn Fn(f32) -> f32| plain.radians.iter().copied().map(scale).collect();
    match *scaling {
        // Positions are interpolated (arXiv 2306.15595).
        RopeScaling::Linear { factor } => Frequencies {
            radians: each(&|radians| radians / factor as f32),
            ..plain
        },
        // Long wavelengths are interpolated, short ones left as they are (arXiv 2407.21783, section 3.4.2).
        RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_context,
        } => {
            let original = original_context as f32;
            let (factor, low, high) = (factor as f32, low_freq_factor, high_freq_factor);
            let longest = (original_context as f64 / low) as f32;
            let shortest = (original_context as f64 / high) as f32;
            let scale = |radians: f32| {
                let wavelength = (2.0 * PI) as f32 / radians;
                if wavelength > longest {
                    return radians / factor;
                }
                if wavelength < shortest {
                    return radians;
                }
                let smooth = (original / wavelength - low as f32) / (high - low) as f32;
                (1.0 - smooth) * radians / factor + smooth * radians
            };
            Frequencies {
                radians: each(&scale),
                ..plain
            }
        }
        // Interpolated and plain frequencies are mixed by the number of rotations in the original context
        // (arXiv 2309.00071, section 3.2), and queries and keys are lengthened (section 3.3).
        RopeScaling::Yarn {
            factor,
            original_context,
            beta_fast,
            beta_slow,
            attention_factor,
            truncate,
            ..
        } => {
            let (dim, theta) = (config.rotary_dim as f64, config.rope_theta);
            let place = |rotations: f64| {
                let wavelength = original_context as f64 / (rotations * 2.0 * PI);
                dim * wavelength.ln() / (2.0 * theta.ln())
            };
            let (mut low, mut high) = (place(beta_fast), place(beta_slow));
            if truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
            if low == high {
                high += 0.001; // as there, against a division by zero
            }
            let mix = plain.radians.iter().enumerate().map(|(i, &radians)| {
                let exponent = (2 * i) as f32 / config.rotary_dim as f32;
                let interpolated = 1.0 / (factor as f32 * (theta as f32).powf(exponent));
                let ramp = ((i as f32 - low as f32) / (high - low) as f32).clamp(0.0, 1.0);
                let plain = 1.0 - ramp;
                interpolated * (1.0 - plain) + radians * plain
            });
            Frequencies {
                radians: mix.collect(),
                length: attention_factor.unwrap_or_else(|| yarn_length(factor, 1.0)) as f32,
            }
        }
    }
}

/// The length that YaRN gives to queries and keys: `0.1 · m · ln(factor) + 1` (arXiv 2309.00071, eq. 22, with m = 1).
pub fn yarn_length(factor: f64, m: f64) -> f64 {
    if factor <= 1.0 {
        return 1.0;
    }
    0.1 * m * factor.ln() + 1.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::tiny;

    fn of(scaling: Option<RopeScaling>) -> Frequencies {
        let mut config = tiny();
        (config.rotary_dim, config.rope_theta) = (8, 16.0);
        config.rope_scaling = scaling;
        frequencies(&config)
    }

    #[track_caller]
    fn close(found: &[f32], expected: &[f32]) {
        firebox_runtime::testing::assert_close("radians", found, expected, 1e-6).unwrap();
    }

    #[test]
    fn linear_scaling_divides() {
        close(&of(None).radians, &[1.0, 0.5, 0.25, 0.125]);
        let found = of(Some(RopeScaling::Linear { factor: 4.0 }));
        close(&found.radians, &[0.25, 0.125, 0.0625, 0.03125]);
        assert_eq!(found.length, 1.0);
    }

    #[test]
    fn llama_scales_what_does_not_turn_within_the_original_context() {
        // Wavelengths 6.28, 12.57, 25.13 and 50.27; those below 32 / 4 = 8 stay, those above 32 are divided by 2.
        let found = of(Some(RopeScaling::Llama3 {
            factor: 2.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 32,
        }));
        let between = |radians: f32| {
            let smooth = (32.0 * radians / (2.0 * PI as f32) - 1.0) / 3.0;
            (1.0 - smooth) * radians / 2.0 + smooth * radians
        };
        close(&found.radians, &[1.0, between(0.5), between(0.25), 0.0625]);
    }

    #[test]
    fn yarn_mixes_by_rotations_and_lengthens() {
        let yarn = |attention_factor| {
            of(Some(RopeScaling::Yarn {
                factor: 4.0,
                original_context: 32,
                beta_fast: 4.0,
                beta_slow: 1.0,
                attention_factor,
                truncate: false,
                mscale_all_dim: 0.0,
            }))
        };
        // 4 rotations in 32 positions have a frequency of π/4 = 16^(−x/4), x = 0.348; one rotation has x = 2.348.
        let found = yarn(None);
        let mix = |place: f32, radians: f32| {
            let ramp = ((place - 0.348_5) / 2.0).clamp(0.0, 1.0);
            radians / 4.0 * ramp + radians * (1.0 - ramp)
        };
        let expected = [1.0, mix(1.0, 0.5), mix(2.0, 0.25), 0.125 / 4.0];
        firebox_runtime::testing::assert_close("radians", &found.radians, &expected, 1e-4).unwrap();
        assert!((found.length - (0.1 * 4f32.ln() + 1.0)).abs() < 1e-6);
        assert_eq!(yarn(Some(1.5)).length, 1.5);
    }
}
