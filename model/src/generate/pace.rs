//! How many tokens to draft.
//!
//! A step of several rows takes longer than one of a single row, in a mixture of experts all the more, as more rows visit
//! more experts. Whether drafted tokens are worth that depends on the model, the machine, the number of texts and the
//! text itself. So the number is chosen from what steps took and what was accepted, and what that may lose is bounded:
//! a step that could lose time is taken only while all such steps together have lost less than a small part of the time.

use std::collections::{BTreeMap, VecDeque};

/// How many tokens are drafted for a text and step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DraftTokens {
    /// Always so many, where the context and the number of tokens to generate allow it.
    Fixed(usize),
    /// As many as make the fastest steps by what was measured so far, from none to 8.
    Auto,
}

/// Numbers of tokens to choose from, besides none.
const DEPTHS: [usize; 6] = [1, 2, 3, 4, 6, 8];

/// Steps without a draft at the beginning, to know what they take.
const PLAIN_STEPS: usize = 3;

/// Fraction of the time that drafts may lose.
const ALLOWANCE: f64 = 0.03;

/// Steps of which the gain is remembered: a text that becomes hard to guess then soon counts as lost time.
const REMEMBERED: f64 = 4.0;

/// Assumed cost of one more row, as a fraction of a step of one row, until it is measured.
const GUESSED_ROW: f64 = 0.3;

/// Assumed cost of drafting one token for each text, as a fraction of a step, until it is measured.
const GUESSED_ROUND: f64 = 0.2;

/// Assumed fraction of drafted tokens that are accepted, until it is measured.
const GUESSED_ACCEPTANCE: f64 = 0.5;

/// Number of recent times of which the median counts.
const RECENT: usize = 9;

/// Steps with drafts after which one without a draft is measured again.
const REFRESH: usize = 32;

/// How much of what was drafted and accepted before remains each time.
const DECAY: f64 = 0.95;

/// A step in which each text draws its next token.
#[derive(Debug, Clone, Copy)]
pub struct Step {
    /// Number of texts.
    pub texts: usize,
    /// Tokens that were wanted of the draft for each of them.
    pub wanted: usize,
    /// Tokens that were drafted, of all texts.
    pub drafted: usize,
    /// Tokens that the step gave.
    pub tokens: usize,
    /// Seconds of the step, drafting included.
    pub seconds: f64,
    /// Seconds of drafting.
    pub draft_seconds: f64,
    /// Seconds of drafting a token for each text; `None` where it is not known.
    pub round_seconds: Option<f64>,
}

/// Chooses the number of drafted tokens.
#[derive(Debug)]
pub struct Pace {
    draft_tokens: DraftTokens,
    /// Seconds of a step by its number of rows, without drafting.
    steps: Times,
    /// Seconds of drafting a token by the number of texts.
    rounds: Times,
    /// Of the tokens that were compared with what was drawn, those that were accepted, by their place in the draft.
    accepted: Vec<Mean>,
    /// Of wanted tokens, those that were drafted.
    drafted: Mean,
    plain_steps: usize,
    /// Steps with drafts since the last one without.
    since_plain: usize,
    /// Seconds of all steps.
    elapsed: f64,
    /// Seconds that drafts have lost.
    lost: f64,
}

impl Pace {
    pub fn new(draft_tokens: DraftTokens) -> Self {
        Self {
            draft_tokens,
            steps: Times::default(),
            rounds: Times::default(),
            accepted: Vec::new(),
            drafted: Mean {
                sum: 1.0,
                weight: 1.0,
            },
            plain_steps: 0,
            since_plain: 0,
            elapsed: 0.0,
            lost: 0.0,
        }
    }

    /// Tokens to draft for each of so many texts.
    pub fn draft_tokens(&self, texts: usize) -> usize {
        if let DraftTokens::Fixed(tokens) = self.draft_tokens {
            return tokens;
        }
        if texts == 0 {
            return 0;
        }
        let plain = match self.steps.at(texts) {
            Some(plain) if self.plain_steps >= PLAIN_STEPS && self.since_plain < REFRESH => plain,
            _ => return 0,
        };
        let allowed = ALLOWANCE * self.elapsed + plain - self.lost;
        let rate = |depth: usize| self.tokens(depth) / self.seconds(texts, depth, plain);
        let best = DEPTHS
            .into_iter()
            .max_by(|&a, &b| rate(a).total_cmp(&rate(b)));
        match best {
            Some(best) if rate(best) * plain > 1.0 && allowed > 0.0 => best,
            // Now and then, whether it has become worth it.
            _ if self.seconds(texts, 1, plain) - plain < allowed => 1,
            _ => 0,
        }
    }

    /// Tokens that a step is expected to give a text.
    fn tokens(&self, depth: usize) -> f64 {
        let places = (0..depth).scan((1.0, GUESSED_ACCEPTANCE), |(run, before), place| {
            // What is known of the place before counts as one more comparison.
            let known = self.accepted.get(place).copied().unwrap_or_default();
            *before = (known.sum + *before) / (known.weight + 1.0);
            *run *= *before;
            Some(*run)
        });
        1.0 + self.drafted.value() * places.sum::<f64>()
    }

    /// Of a draft, the first so many tokens were accepted.
    pub fn compared(&mut self, drafted: usize, accepted: usize) {
        for place in 0..drafted.min(accepted + 1) {
            if self.accepted.len() == place {
                self.accepted.push(Mean::default());
            }
            self.accepted[place].add(f64::from(u8::from(place < accepted)));
        }
    }

    /// Seconds that a step is expected to take.
    fn seconds(&self, texts: usize, depth: usize, plain: f64) -> f64 {
        let drafted = self.drafted.value() * depth as f64;
        let rows = texts as f64 * (1.0 + drafted);
        let step = self.steps.at(rows.round() as usize).unwrap_or(plain);
        let round = self.rounds.at(texts).unwrap_or(GUESSED_ROUND * plain);
        step + round * depth as f64
    }

    pub fn record(&mut self, step: Step) {
        self.elapsed += step.seconds;
        self.steps
            .add(step.texts + step.drafted, step.seconds - step.draft_seconds);
        if step.wanted == 0 {
            self.plain_steps += 1;
            self.since_plain = 0;
            return;
        }
        self.since_plain += 1;
        if let Some(seconds) = step.round_seconds {
            self.rounds.add(step.texts, seconds);
        }
        let wanted = (step.texts * step.wanted) as f64;
        self.drafted.add(step.drafted as f64 / wanted);
        if let Some(plain) = self.steps.at(step.texts) {
            let gained = plain * step.tokens as f64 / step.texts as f64;
            self.lost = (self.lost + step.seconds - gained).max(-REMEMBERED * plain);
        }
    }
}

/// An average in which what is older counts less.
#[derive(Debug, Clone, Copy, Default)]
struct Mean {
    sum: f64,
    weight: f64,
}

impl Mean {
    fn add(&mut self, value: f64) {
        self.sum = self.sum * DECAY + value;
        self.weight = self.weight * DECAY + 1.0;
    }

    fn value(&self) -> f64 {
        self.sum / self.weight
    }
}

/// The median of the last few times, which an interruption does not change.
#[derive(Debug, Default)]
struct Recent {
    times: VecDeque<f64>,
}

impl Recent {
    fn add(&mut self, seconds: f64) {
        if self.times.len() == RECENT {
            self.times.pop_front();
        }
        self.times.push_back(seconds);
    }

    fn median(&self) -> f64 {
        let mut sorted: Vec<f64> = self.times.iter().copied().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        sorted[(sorted.len() - 1) / 2]
    }
}

/// Seconds by size.
#[derive(Debug, Default)]
struct Times(BTreeMap<usize, Recent>);

impl Times {
    fn add(&mut self, size: usize, seconds: f64) {
        self.0.entry(size).or_default().add(seconds);
    }

    /// Measured, or on a line through what was measured of the nearest sizes; `None` if nothing was.
    fn at(&self, size: usize) -> Option<f64> {
        let known = |(&size, times): (&usize, &Recent)| (size as f64, times.median());
        let mut below = self.0.range(..=size).rev().map(known);
        let above = self.0.range(size..).next().map(known);
        let at = size as f64;
        match (below.next(), above) {
            (Some((low, less)), Some((high, more))) if high > low => {
                Some(less + (more - less) * (at - low) / (high - low))
            }
            (Some((low, less)), None) => {
                let slope = match below.next() {
                    Some((lower, least)) => (less - least).max(0.0) / (low - lower),
                    None => GUESSED_ROW * less / low.max(1.0),
                };
                Some(less + slope * (at - low))
            }
            (Some((_, seconds)), _) | (None, Some((_, seconds))) => Some(seconds),
            (None, None) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seconds of some texts of this many tokens each with [`DraftTokens::Auto`], over those without drafts; and the number
    /// of drafted tokens in the end. A step of several rows takes `1 + row · (rows − 1)`, and drafting a token `round`. After
    /// `place` tokens a drafted token is accepted with probability `accepted(place)`.
    fn play(
        texts: usize,
        tokens: usize,
        row: f64,
        round: f64,
        accepted: impl Fn(usize) -> f64,
    ) -> (f64, usize) {
        let mut pace = Pace::new(DraftTokens::Auto);
        let step_seconds = |rows: usize| 1.0 + row * (rows as f64 - 1.0);
        let (mut elapsed, mut done, mut depth) = (0.0, 0, 0);
        let mut state = 1u64;
        let mut uniform = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as f64 / (1u64 << 31) as f64
        };
        while done < tokens * texts {
            depth = pace.draft_tokens(texts);
            let mut drawn = 0;
            for _ in 0..texts {
                let run = (0..depth)
                    .take_while(|_| uniform() < accepted(done / texts))
                    .count();
                drawn += run;
                pace.compared(depth, run);
            }
            let draft_seconds = round * depth as f64;
            let seconds = step_seconds(texts * (1 + depth)) + draft_seconds;
            pace.record(Step {
                texts,
                wanted: depth,
                drafted: texts * depth,
                tokens: texts + drawn,
                seconds,
                draft_seconds,
                round_seconds: (depth > 0).then_some(round),
            });
            elapsed += seconds;
            done += texts + drawn;
        }
        (
            elapsed / (step_seconds(texts) * (done / texts) as f64),
            depth,
        )
    }

    #[test]
    fn useless_drafts_lose_little() {
        for (row, round) in [(0.7, 0.0), (0.7, 0.2), (1.0, 1.0), (0.1, 0.05)] {
            for texts in [1, 8] {
                let (seconds, _) = play(texts, 200, row, round, |_| 0.0);
                assert!(seconds < 1.05, "{texts} texts, {row}, {round}: {seconds}");
            }
        }
    }

    #[test]
    fn good_drafts_are_used() {
        let (seconds, depth) = play(1, 200, 0.1, 0.0, |_| 1.0);
        assert!(seconds < 0.3 && depth == 8, "{seconds}, {depth}");
        let (seconds, depth) = play(1, 200, 0.3, 0.05, |_| 0.85);
        assert!(seconds < 0.75 && depth > 1, "{seconds}, {depth}");
    }

    #[test]
    fn a_text_may_change() {
        let (seconds, depth) = play(1, 600, 0.2, 0.0, |place| f64::from(u8::from(place > 300)));
        assert!(seconds < 0.8 && depth > 4, "{seconds}, {depth}");
        let (seconds, _) = play(1, 900, 0.7, 0.1, |place| f64::from(u8::from(place < 100)));
        assert!(seconds < 1.03, "{seconds}");
    }

    #[test]
    fn a_fixed_number_is_kept() {
        assert_eq!(Pace::new(DraftTokens::Fixed(5)).draft_tokens(3), 5);
    }

    #[test]
    fn an_interruption_does_not_count() {
        let mut times = Times::default();
        for seconds in [1.0, 1.1, 90.0, 0.9, 1.2] {
            times.add(1, seconds);
        }
        assert_eq!(times.at(1), Some(1.1));
        (0..RECENT).for_each(|_| times.add(1, 2.0));
        assert_eq!(times.at(1), Some(2.0));
    }

    #[test]
    fn times_between_and_beyond() {
        let mut times = Times::default();
        assert_eq!(times.at(3), None);
        times.add(2, 1.0);
        let close = |found: Option<f64>, expected: f64| {
            assert!((found.unwrap() - expected).abs() < 1e-12, "{found:?}");
        };
        close(times.at(1), 1.0);
        close(times.at(2), 1.0);
        close(times.at(4), 1.3);
        times.add(6, 3.0);
        close(times.at(3), 1.5);
        close(times.at(8), 4.0);
    }
}
