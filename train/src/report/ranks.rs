//! What the ranks of a run did in its steps: where their time went, and what they sent.

use firebox_console::numbers::{brief, bytes, counted, grouped, percentage};
use firebox_console::report::{Bars, Cell, HeatMap, Page, Table, Verdict};

use super::{Recorded, Report};
use crate::metrics::TrainRecord;
use crate::ranks::{RankRecord, SHORT, SLOW, relative_to_median, slow_rank};

/// Seconds of a rank for a sequence, relative to the median of all in the same step.
const SPEEDS: [(f64, &str); 7] = [
    (0.67, "below 0.67"),
    (0.8, "below 0.8"),
    (0.9, "below 0.9"),
    (1.1, "the median"),
    (1.25, "below 1.25"),
    (SLOW, "below 1.5"),
    (f64::INFINITY, "1.5 times the median and more"),
];

/// Where the time of a step went on one rank, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub(super) struct Times {
    /// Computing its gradient.
    pub computing: f64,
    /// Messages meanwhile.
    pub messages: f64,
    /// From the end of both until the slowest rank was as far.
    pub waiting: f64,
    /// Handing over gradients then, and the weights of the step before.
    pub exchanging: f64,
}

impl Times {
    /// Those of the ranks in a step.
    ///
    /// All begin a step together, with a message, and again add up their gradients together, when the last of them has its own:
    /// how long the others wait for it is the difference of what they took until then.
    pub fn of(ranks: &[RankRecord]) -> Vec<Self> {
        let until = |rank: &RankRecord| rank.computing + rank.communicating;
        let last = ranks.iter().map(until).fold(0.0, f64::max);
        let times = ranks.iter().map(|rank| {
            let waiting = last - until(rank);
            Self {
                computing: rank.computing,
                messages: rank.communicating,
                waiting,
                exchanging: (rank.exchanging - waiting).max(0.0),
            }
        });
        times.collect()
    }

    fn parts(&self) -> [f64; 4] {
        [self.computing, self.messages, self.waiting, self.exchanging]
    }

    fn sum(&self) -> f64 {
        self.parts().iter().sum()
    }
}

/// What a rank did in a step, on average.
struct Mean {
    times: Times,
    sequences: f64,
    seconds_per_sequence: f64,
    bytes: f64,
}

/// Bytes that all ranks together sent in a step.
struct Sent {
    what: &'static str,
    counted: u64,
    /// By `cargo train check`.
    predicted: Option<f64>,
    /// Whether the prediction is exact.
    is_exact: bool,
}

impl Recorded {
    /// Whether several ranks trained it, at the end.
    pub(super) fn has_ranks(&self) -> bool {
        self.last().is_some_and(|record| record.ranks.len() > 1)
    }

    /// The last logged steps that as many ranks took in the same layout, without the first step of the run, which is slower than
    /// the others and gives no weights away, where there are others; and the step that was logged before them.
    fn over_ranks(&self) -> (Option<&TrainRecord>, &[TrainRecord]) {
        let Some(last) = self.last() else {
            return (None, &[]);
        };
        let is_alike = |record: &TrainRecord| {
            record.ranks.len() == last.ranks.len() && record.layout == last.layout
        };
        let alike = self.training.iter().rev();
        let mut first = self.training.len() - alike.take_while(|record| is_alike(record)).count();
        if self.training[first].step == 1 && first + 1 < self.training.len() {
            first += 1;
        }
        let (before, records) = self.training.split_at(first);
        (before.last(), records)
    }

    /// What each rank did in a step, on average.
    fn means(&self) -> Vec<Mean> {
        let (_, records) = self.over_ranks();
        let times: Vec<Vec<Times>> = records.iter().map(|step| Times::of(&step.ranks)).collect();
        let ranks = records.last().map_or(0, |record| record.ranks.len());
        let means = (0..ranks).map(|rank| {
            let time = |of: fn(&Times) -> f64| mean(times.iter().map(|times| of(&times[rank])));
            let value = |of: fn(&RankRecord) -> f64| {
                mean(records.iter().map(|record| of(&record.ranks[rank])))
            };
            Mean {
                times: Times {
                    computing: time(|times| times.computing),
                    messages: time(|times| times.messages),
                    waiting: time(|times| times.waiting),
                    exchanging: time(|times| times.exchanging),
                },
                sequences: value(|rank| rank.sequences as f64),
                seconds_per_sequence: value(RankRecord::seconds_per_sequence),
                bytes: value(|rank| (rank.bytes + rank.token_bytes + rank.sum_bytes) as f64),
            }
        });
        means.collect()
    }

    /// Seconds of a step, on average, update included.
    fn seconds_per_step(&self) -> Option<f64> {
        let (before, records) = self.over_ranks();
        let last = records.last()?;
        let (step, seconds) = before.map_or((0, 0.0), |before| (before.step, before.seconds));
        Some((last.seconds - seconds) / (last.step as f64 - step as f64))
    }

    /// What all ranks together sent in a step: the last logged one, and of gradients and weights the last two, if one gave no
    /// weights away.
    fn sent(&self) -> Vec<Sent> {
        let Some(last) = self.last().filter(|_| self.has_ranks()) else {
            return Vec::new();
        };
        let sum = |of: fn(&RankRecord) -> u64| last.ranks.iter().map(of).sum();
        // The first step of a process gives no weights away, and nothing in the records tells it from the others.
        let (_, records) = self.over_ranks();
        let weights = records.iter().rev().take(2);
        let weights = weights.map(|record| record.ranks.iter().map(|rank| rank.bytes).sum());
        let plan = self.plan.as_ref();
        let tokens = last.batch_tokens as f64;
        let sent = [
            Sent {
                what: "gradients and weights",
                counted: weights.max().unwrap_or_default(),
                predicted: plan
                    .filter(|_| records.len() > 1)
                    .map(|plan| plan.bytes_per_step as f64),
                is_exact: true,
            },
            Sent {
                what: "tokens to experts and back",
                counted: sum(|rank| rank.token_bytes),
                predicted: plan.and_then(|plan| Some(plan.bytes_per_token? * tokens)),
                is_exact: false,
            },
            Sent {
                what: "sums over tensor ranks",
                counted: sum(|rank| rank.sum_bytes),
                predicted: plan.and_then(|plan| Some(plan.sum_bytes_per_token? as f64 * tokens)),
                is_exact: false,
            },
        ];
        let sent = sent
            .into_iter()
            .filter(|sent| sent.counted > 0 || sent.predicted.is_some());
        sent.collect()
    }

    /// How well the ranks keep pace with each other.
    pub(super) fn pace(&self) -> Option<(Verdict, String)> {
        if !self.has_ranks() {
            return None;
        }
        let (_, records) = self.over_ranks();
        let means = self.means();
        let times = means.iter().map(|mean| mean.times);
        let part = times.clone().map(|times| times.waiting).sum::<f64>()
            / times
                .map(|times| times.sum())
                .sum::<f64>()
                .max(f64::MIN_POSITIVE);
        let waited = format!(
            "{} wait for the slowest one for {} of their time",
            counted(means.len() as u128, "rank"),
            percentage(part)
        );
        let slow = records.iter().filter_map(|record| {
            let text = slow_rank(&record.ranks)?;
            Some((record.step, text))
        });
        let slow: Vec<(u64, String)> = slow.collect();
        Some(match slow.last() {
            None => (Verdict::Good, format!("no rank is slow: {waited}")),
            Some((step, text)) => {
                let verdict = match 2 * slow.len() > records.len() {
                    true => Verdict::Bad,
                    false => Verdict::Notable,
                };
                let text = format!(
                    "{waited}; at {} of {} logged steps, last at step {}, {text}",
                    slow.len(),
                    records.len(),
                    grouped(*step),
                );
                (verdict, text)
            }
        })
    }

    /// Where the time of each rank went.
    fn rank_bars(&self) -> Bars {
        let whole = self.seconds_per_step().unwrap_or_default();
        let bars = Bars::new(
            format!("{}: where the time of a step goes", self.name),
            ["seconds of a step", "rank"],
            [
                "computing the gradient",
                "waiting for the slowest rank",
                "messages meanwhile",
                "gradients and weights",
                "update and the rest",
            ],
        );
        let means = self.means();
        let bars = means.iter().fold(bars, |bars, Mean { times, .. }| {
            let [computing, messages, waiting, exchanging] = times.parts();
            bars.bar([
                computing,
                waiting,
                messages,
                exchanging,
                whole - times.sum(),
            ])
        });
        bars.note(
            "Means of the logged steps. Messages are of expert load, tokens and their sums, and include waiting for others; \
             gradients and weights are what follows when the slowest rank has its gradient.",
        )
    }

    /// How long each rank computed for a sequence over time, relative to the others.
    fn rank_speeds(&self) -> HeatMap {
        let (_, records) = self.over_ranks();
        let of_step = |record: &TrainRecord| {
            let seconds = record.ranks.iter().map(RankRecord::seconds_per_sequence);
            relative_to_median(&seconds.collect::<Vec<f64>>())
        };
        let speeds: Vec<Vec<f64>> = records.iter().map(of_step).collect();
        let map = HeatMap::new(
            format!(
                "{}: computing time of each rank for a sequence, beside the median of the step",
                self.name
            ),
            ["step", "rank"],
            records.iter().map(|record| record.step as f64),
            &SPEEDS,
        );
        let ranks = speeds.first().map_or(0, Vec::len);
        (0..ranks).fold(map, |map, rank| {
            map.row(speeds.iter().map(|speeds| speeds[rank]))
        })
    }
}

impl Report {
    /// Adds what is to be seen of runs over several ranks.
    pub(super) fn ranks(&self, page: Page) -> Page {
        if !self.runs.iter().any(Recorded::has_ranks) {
            return page;
        }
        let mut page = page.section("Ranks");
        for run in self.runs.iter().filter(|run| run.has_ranks()) {
            page = page.bars(run.rank_bars()).heat_map(run.rank_speeds());
        }
        page.table(self.ranks_table()).table(self.sent_table())
    }

    /// The time of each rank.
    pub(super) fn ranks_table(&self) -> Table {
        let table = Table::new("ranks: seconds of a step, means of the logged steps")
            .texts(["run", "rank"])
            .numbers([
                "sequences",
                "computing",
                "each/median",
                "messages",
                "waiting",
                "gradients, weights",
                "sent",
            ]);
        let runs = self.runs.iter().filter(|run| run.has_ranks());
        let table = runs.fold(table, |table, run| {
            let means = run.means();
            let seconds = means.iter().map(|mean| mean.seconds_per_sequence);
            let relative = relative_to_median(&seconds.collect::<Vec<f64>>());
            let ranks = means.iter().zip(relative).enumerate();
            ranks.fold(table, |table, (rank, (mean, relative))| {
                let [computing, messages, waiting, exchanging] = mean.times.parts().map(brief);
                let text = format!("{relative:.2}");
                table.row([
                    run.name.clone().into(),
                    rank.to_string().into(),
                    brief(mean.sequences).into(),
                    computing.into(),
                    match relative > SLOW && mean.times.computing > SHORT {
                        true => Cell::judged(text, Verdict::Bad),
                        false => text.into(),
                    },
                    messages.into(),
                    waiting.into(),
                    exchanging.into(),
                    bytes(mean.bytes as u128).into(),
                ])
            })
        });
        table.note(
            "each/median: computing time for a sequence, beside that of the median rank. Waiting is for the slowest rank, at the \
             end of the gradient.",
        )
    }

    /// What ranks sent, beside what `cargo train check` predicts.
    pub(super) fn sent_table(&self) -> Table {
        let table = Table::new("what all ranks send in a step")
            .texts(["run", "layout", "what"])
            .numbers(["counted", "predicted", "ratio"]);
        let sent = self.runs.iter();
        let sent = sent.flat_map(|run| run.sent().into_iter().map(move |sent| (run, sent)));
        let table = sent.fold(table, |table, (run, sent)| {
            let ratio = sent
                .predicted
                .map(|predicted| sent.counted as f64 / predicted);
            let layout = run.last().and_then(|record| record.layout);
            table.row([
                run.name.clone().into(),
                layout
                    .map_or_else(String::new, |layout| layout.to_string())
                    .into(),
                sent.what.into(),
                bytes(u128::from(sent.counted)).into(),
                sent.predicted
                    .map(|predicted| bytes(predicted as u128))
                    .unwrap_or_default()
                    .into(),
                match ratio {
                    None => Cell::from(""),
                    Some(ratio) if sent.is_exact && (ratio - 1.0).abs() > 1e-6 => {
                        Cell::judged(format!("{ratio:.4}"), Verdict::Bad)
                    }
                    Some(ratio) => format!("{ratio:.4}").into(),
                },
            ])
        });
        table.note(
            "Predicted as by `cargo train check`: for tokens, as if every expert were as likely, and for a batch that is \
             computed at once.",
        )
    }
}

fn mean(values: impl ExactSizeIterator<Item = f64>) -> f64 {
    let count = values.len().max(1) as f64;
    values.sum::<f64>() / count
}
