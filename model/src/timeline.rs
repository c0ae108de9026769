//! When each stage of a pipeline computes, and when it waits.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

/// What a stage does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Activity {
    /// It waits for the residual stream of the stage before.
    Wait,
    /// It computes its layers; sums over the tensor ranks of the stage, and waiting for these, are part of it.
    Compute,
    /// It hands the residual stream to the next stage.
    Send,
}

/// A stage's part of a step, or a piece of that, as its first tensor rank sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The stage.
    pub stage: usize,
    /// What it does.
    pub activity: Activity,
    /// Number of the step, from 0.
    pub step: u64,
    /// Tokens of the step.
    pub tokens: usize,
    /// When it begins, in microseconds since 1970.
    pub start: u64,
    /// Microseconds that it takes.
    pub duration: u64,
}

/// Records the spans of a stage after [`start`](Recorder::start), and nothing before.
#[derive(Debug, Default)]
pub(crate) struct Recorder(Option<Record>);

#[derive(Debug)]
struct Record {
    stage: usize,
    /// The same moment by both clocks.
    epoch: (Instant, u64),
    /// Of the next step, and the tokens of this one.
    step: u64,
    tokens: usize,
    /// Where the next span begins.
    mark: Instant,
    spans: Vec<Span>,
}

impl Recorder {
    /// Records from now on.
    pub fn start(&mut self, stage: usize) {
        let now = Instant::now();
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let micros = since.map_or(0, |since| since.as_micros() as u64);
        self.0 = Some(Record {
            stage,
            epoch: (now, micros),
            step: 0,
            tokens: 0,
            mark: now,
            spans: Vec::new(),
        });
    }

    /// The next step begins.
    pub fn step(&mut self, tokens: usize) {
        if let Some(record) = &mut self.0 {
            record.step += 1;
            record.tokens = tokens;
            record.mark = Instant::now();
        }
    }

    /// What the stage has done since the step began, or since this was called last.
    pub fn did(&mut self, activity: Activity) {
        if let Some(record) = &mut self.0 {
            let (from, now) = (record.mark, Instant::now());
            let (instant, micros) = record.epoch;
            record.spans.push(Span {
                stage: record.stage,
                activity,
                step: record.step - 1,
                tokens: record.tokens,
                start: micros + (from - instant).as_micros() as u64,
                duration: (now - from).as_micros() as u64,
            });
            record.mark = now;
        }
    }

    /// What was recorded so far.
    pub fn take(&mut self) -> Vec<Span> {
        let record = self.0.as_mut();
        record.map_or_else(Vec::new, |record| std::mem::take(&mut record.spans))
    }
}

/// For each stage, the share of the time in which it computes: from the beginning of the first span of all stages to the end
/// of the last one.
pub fn busy_shares(spans: &[Span]) -> Vec<f64> {
    let stages = spans.iter().map(|span| span.stage + 1).max().unwrap_or(0);
    let first = spans.iter().map(|span| span.start).min().unwrap_or(0);
    let last = spans.iter().map(|span| span.start + span.duration).max();
    let all = last.unwrap_or(0).saturating_sub(first).max(1);
    let mut busy = vec![0; stages];
    for span in spans {
        if span.activity == Activity::Compute {
            busy[span.stage] += span.duration;
        }
    }
    busy.into_iter()
        .map(|busy| busy as f64 / all as f64)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_of_the_time_of_all_stages() {
        let span = |stage, activity, start, duration| Span {
            stage,
            activity,
            step: 0,
            tokens: 1,
            start,
            duration,
        };
        let spans = [
            span(0, Activity::Compute, 100, 40),
            span(0, Activity::Send, 140, 10),
            span(1, Activity::Wait, 100, 50),
            span(1, Activity::Compute, 150, 50),
            span(0, Activity::Compute, 160, 20),
        ];
        assert_eq!(busy_shares(&spans), [0.6, 0.5]);
        assert!(busy_shares(&[]).is_empty());
    }

    #[test]
    fn nothing_is_recorded_unless_it_is_wanted() {
        let mut recorder = Recorder::default();
        recorder.step(1);
        recorder.did(Activity::Compute);
        assert!(recorder.take().is_empty());
        recorder.start(3);
        for tokens in [5, 7] {
            recorder.step(tokens);
            recorder.did(Activity::Wait);
            recorder.did(Activity::Compute);
        }
        let spans = recorder.take();
        let seen = spans
            .iter()
            .map(|span| (span.stage, span.activity, span.step, span.tokens));
        let expected = [
            (3, Activity::Wait, 0, 5),
            (3, Activity::Compute, 0, 5),
            (3, Activity::Wait, 1, 7),
            (3, Activity::Compute, 1, 7),
        ];
        assert!(seen.eq(expected));
        for pair in spans.windows(2) {
            // Rounding to whole microseconds may move a beginning by one.
            assert!(pair[0].start + pair[0].duration <= pair[1].start + 1);
        }
        assert!(recorder.take().is_empty());
    }
}
