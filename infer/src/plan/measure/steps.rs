//! The time of real steps.

use std::time::Instant;

use firebox_model::generate::{self, Ended, Receiver, Request, Token, generate_all};
use firebox_model::network::Network;
use firebox_model::sampling::Sampling;

use crate::bench::synthetic_ids;

/// How often it is tried; the best time counts.
const REPEATS: usize = 3;

/// Seconds of texts that are generated at once.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Seconds {
    /// From the prompts to the first token of the last text that has one.
    pub first: f64,
    /// From a token of a text to its next one: the median.
    pub between: f64,
}

/// Generates `output` tokens greedily for each of `batch` different prompts of `prompt` tokens.
pub(super) fn time(
    network: &mut (impl Network + ?Sized),
    batch: usize,
    prompt: usize,
    output: usize,
) -> Seconds {
    let tries = (0..REPEATS).map(|_| once(network, batch, prompt, output));
    tries
        .reduce(|best, one| Seconds {
            first: best.first.min(one.first),
            between: best.between.min(one.between),
        })
        .expect("there are several tries")
}

fn once(
    network: &mut (impl Network + ?Sized),
    batch: usize,
    prompt: usize,
    output: usize,
) -> Seconds {
    let vocab_size = network.config().vocab_size;
    let requests = (0..batch).map(|row| {
        let prompt = synthetic_ids(row, prompt, vocab_size);
        Request::new(prompt, output, Sampling::greedy())
    });
    let options = generate::Options {
        batch,
        in_flight: network.stages(),
        ..generate::Options::new(&[])
    };
    let mut clock = Clock(vec![Vec::new(); batch]);
    let started = Instant::now();
    generate_all(network, requests, &options, &mut clock);
    clock.seconds(started)
}

/// When each token of each text came.
#[derive(Debug)]
struct Clock(Vec<Vec<Instant>>);

impl Receiver for Clock {
    fn token(&mut self, text: usize, _: Token) -> bool {
        self.0[text].push(Instant::now());
        true
    }

    fn ended(&mut self, _: usize, _: Ended) {}
}

impl Clock {
    fn seconds(&self, started: Instant) -> Seconds {
        let firsts = self.0.iter().filter_map(|times| times.first());
        let all_began = firsts.max().copied().unwrap_or(started);
        let pairs = || self.0.iter().flat_map(|times| times.windows(2));
        let seconds = |pair: &[Instant]| (pair[1] - pair[0]).as_secs_f64();
        // While prompts are read, steps take longer.
        let decoding = pairs().filter(|pair| pair[0] >= all_began);
        let mut between: Vec<f64> = decoding.map(seconds).collect();
        if between.is_empty() {
            between = pairs().map(seconds).collect();
        }
        between.sort_by(f64::total_cmp);
        Seconds {
            first: (all_began - started).as_secs_f64(),
            between: between.get(between.len() / 2).copied().unwrap_or(0.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn steps_that_read_prompts_do_not_count() {
        let started = Instant::now();
        let at = |ms: &[u64]| {
            let times = ms.iter().map(|&ms| started + Duration::from_millis(ms));
            times.collect::<Vec<_>>()
        };
        let clock = Clock(vec![at(&[10, 50, 60, 70, 80]), at(&[50, 60, 71])]);
        let seconds = clock.seconds(started);
        assert_eq!((seconds.first, seconds.between), (0.05, 0.01));
        // The first text ended before the second one began.
        let clock = Clock(vec![at(&[10, 12, 15]), at(&[40])]);
        assert_eq!(clock.seconds(started).between, 0.003);
    }
}
