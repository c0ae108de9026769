//! The learning-rate schedule.

use crate::config::{DecayKind, ScheduleConfig};

/// The learning rate of a step, as a fraction of the peak.
///
/// Linear warm-up from 0 to the peak over `warmup_steps`; then either a half cosine down to `final_ratio` at the
/// last step (arXiv 1608.03983), or constant and, in the last `cooldown_fraction` of the steps, linear down to
/// `final_ratio` (warm-up, stable, decay: arXiv 2404.06395).
///
/// Steps count from 0.
pub fn learning_rate_fraction(schedule: &ScheduleConfig, step: u64, steps: u64) -> f64 {
    if step < schedule.warmup_steps {
        return (step + 1) as f64 / schedule.warmup_steps as f64;
    }
    let falling_from = match (schedule.decay, schedule.cooldown_fraction) {
        (DecayKind::Wsd, Some(fraction)) => steps as f64 * (1.0 - fraction),
        _ => schedule.warmup_steps as f64,
    };
    let last = steps.saturating_sub(1) as f64;
    let progress = ((step as f64 - falling_from) / (last - falling_from).max(1.0)).clamp(0.0, 1.0);
    let remaining = match schedule.decay {
        DecayKind::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * progress).cos()),
        DecayKind::Wsd => 1.0 - progress,
    };
    schedule.final_ratio + (1.0 - schedule.final_ratio) * remaining
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::BatchRamp;

    fn schedule(decay: DecayKind) -> ScheduleConfig {
        ScheduleConfig {
            warmup_steps: 10,
            decay,
            final_ratio: 0.1,
            cooldown_fraction: (decay == DecayKind::Wsd).then_some(0.2),
            batch_tokens: BatchRamp {
                start: 64,
                end: 64,
                ramp_steps: 0,
            },
        }
    }

    #[test]
    fn warms_up_and_ends_at_the_final_ratio() {
        for decay in [DecayKind::Cosine, DecayKind::Wsd] {
            let fraction = |step| learning_rate_fraction(&schedule(decay), step, 100);
            assert_eq!(fraction(0), 0.1);
            assert_eq!(fraction(9), 1.0);
            assert!((fraction(99) - 0.1).abs() < 1e-12, "{decay:?}");
            assert!(
                (10..99).all(|step| fraction(step + 1) <= fraction(step)),
                "{decay:?}"
            );
        }
    }

    #[test]
    fn wsd_is_stable_before_its_cooldown() {
        let fraction = |step| learning_rate_fraction(&schedule(DecayKind::Wsd), step, 100);
        assert!((10..=80).all(|step| fraction(step) == 1.0));
        assert!(fraction(81) < 1.0);
    }

    #[test]
    fn a_single_step_without_warm_up_has_the_peak_rate() {
        let schedule = ScheduleConfig {
            warmup_steps: 0,
            ..schedule(DecayKind::Cosine)
        };
        assert_eq!(learning_rate_fraction(&schedule, 0, 1), 1.0);
    }
}
