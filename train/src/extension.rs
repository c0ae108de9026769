//! A run that continues beyond the steps it was started with.
//!
//! The order of its text and the growth of its batch do not depend on the number of steps, so it sees what a longer run
//! would have seen from the start. The learning rate depends on it: as soon as the shorter schedule decays, it is lower.

use crate::config::RunConfig;
use crate::schedule::learning_rate_fraction;

/// Whether a run that has taken `done` of its `fewer` steps is, up to here, a run of `config.train.steps` steps from the
/// start: the learning rate was the same at every step.
pub fn is_exact(config: &RunConfig, fewer: u64, done: u64) -> bool {
    // Both schedules are the same up to the step where the shorter one begins to decay, and nowhere after it.
    done.checked_sub(1)
        .is_none_or(|last| rate(config, last, fewer) == rate(config, last, config.train.steps))
}

/// The learning rate of a step, counted from 0, in a run of `steps` steps.
fn rate(config: &RunConfig, step: u64, steps: u64) -> f64 {
    config.optimizer.learning_rate * learning_rate_fraction(&config.schedule, step, steps)
}

/// Logs what it means to continue a run that had `fewer` steps from the last of its `checkpoints`, which are the steps of
/// all that it has, in ascending order.
pub fn describe(config: &RunConfig, fewer: u64, checkpoints: &[u64]) {
    let Some(&done) = checkpoints.last() else {
        return;
    };
    let steps = config.train.steps;
    tracing::info!(
        "the run continues to {steps} steps instead of {fewer}, with the same data as a run of {steps} from the start"
    );
    let next = rate(config, done, steps);
    if is_exact(config, fewer, done) {
        tracing::info!(
            "its learning rate so far is that of a run of {steps} steps; it continues with {next:.2e}"
        );
        return;
    }
    let last = rate(config, done - 1, fewer);
    let first = (0..done).find(|&step| !is_exact(config, fewer, step + 1));
    tracing::warn!(
        "the learning rate goes from {last:.2e} at step {done} to {next:.2e}: since step {} it followed the decay of a run \
         of {fewer} steps, so the result is not that of a run of {steps} steps from the start",
        first.map_or(done, |step| step + 1)
    );
    let mut before = checkpoints.iter().rev();
    if let Some(step) = before.find(|&&step| is_exact(config, fewer, step)) {
        tracing::info!(
            "the checkpoint of step {step} is from before the decay: to train a run of {steps} steps from there, stop this \
             one, move the newer checkpoints elsewhere and resume again"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::SmallRun;

    #[test]
    fn a_run_is_exact_until_its_learning_rate_falls() {
        let run = SmallRun::new();
        let exact = |set: &[&str], fewer| -> Vec<bool> {
            let set = [&["train.steps=100", "schedule.warmup_steps=5"], set].concat();
            let config = run.config(&set);
            (0..=fewer)
                .map(|done| is_exact(&config, fewer, done))
                .collect()
        };
        let until = |last: usize| -> Vec<bool> { (0..=20).map(|done| done <= last).collect() };
        // The cooldown of 20 steps begins at step 16 of 20, counted from 0, which still has the peak rate.
        assert_eq!(exact(&["schedule.decay=wsd"], 20), until(17));
        // A cosine falls after the first step without warm-up.
        assert_eq!(exact(&[], 20), until(6));
        assert_eq!(exact(&["schedule.final_ratio=1"], 20), until(20));
    }
}
