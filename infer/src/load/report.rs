//! What was measured: as text through `Display`, as JSON through serde.

use std::collections::BTreeMap;
use std::fmt;

use firebox_console::numbers::{brief, grouped, percentage};
use firebox_console::report::{Cell, Table, Verdict};
use firebox_serve::route::Address;
use serde::Serialize;

use super::server_side::Scrape;
use super::{Goodput, Lengths, Load, LoadOptions, Prompts, Quantiles, Record, ServerSide};

/// A server under some loads.
#[derive(Debug, Clone, Serialize)]
pub struct LoadReport {
    /// Where the server is.
    pub server: String,
    /// The model that was asked for.
    pub model: String,
    /// Tokens of a prompt; `None` if prompts were given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_tokens: Option<Lengths>,
    /// Share of a prompt that all have in common.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<f64>,
    /// Tokens to generate.
    pub new_tokens: Lengths,
    /// Temperature of the draws.
    pub temperature: f64,
    /// Seed of all that is random.
    pub seed: u64,
    /// Within which times a request is good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub goodput: Option<Goodput>,
    /// One after the other.
    pub loads: Vec<LoadResult>,
}

/// What came of one load. Times are in seconds.
#[derive(Debug, Clone, Serialize)]
pub struct LoadResult {
    /// How requests came.
    pub load: Load,
    /// Requests whose replies came to an end, good or bad.
    pub requests: usize,
    /// Those with a whole reply.
    pub answered: usize,
    /// The others, by what went wrong.
    pub faults: BTreeMap<String, Faults>,
    /// From the first request to the end of the last reply.
    pub seconds: f64,
    /// Tokens of the prompts, as replies say.
    pub prompt_tokens: usize,
    /// Tokens that were generated, as replies say.
    pub new_tokens: usize,
    /// Whole replies per second.
    pub requests_per_second: f64,
    /// Generated tokens per second.
    pub tokens_per_second: f64,
    /// Requests per second that were good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub good_requests_per_second: Option<f64>,
    /// From a request to its first token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_to_first_token: Option<Quantiles>,
    /// Between two arrivals of tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub between_tokens: Option<Quantiles>,
    /// Of a request's tokens after the first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_per_output_token: Option<Quantiles>,
    /// From a request to the end of its reply.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_to_end: Option<Quantiles>,
    /// What a Firebox server says of itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub server: Option<ServerSide>,
    /// Each request.
    #[serde(skip)]
    pub records: Vec<Record>,
}

/// Requests that went wrong in one way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Faults {
    /// How many.
    pub count: usize,
    /// What was said to the first one.
    pub first: String,
}

impl LoadReport {
    pub(super) fn new(address: &Address, model: &str, options: &LoadOptions) -> Self {
        let (prompt_tokens, prefix) = match options.prompts {
            Prompts::Random { lengths, prefix } => (Some(lengths), Some(prefix)),
            Prompts::Given(_) => (None, None),
        };
        Self {
            server: format!("http://{address}"),
            model: model.to_owned(),
            prompt_tokens,
            prefix,
            new_tokens: options.new_tokens,
            temperature: options.temperature,
            seed: options.seed,
            goodput: options.goodput,
            loads: Vec::new(),
        }
    }

    /// Adds what came of a load.
    pub(super) fn add(
        &mut self,
        load: Load,
        records: Vec<Record>,
        seconds: f64,
        scrapes: Option<(Scrape, Scrape)>,
    ) {
        let whole = || records.iter().filter(|record| record.fault.is_none());
        let mut faults: BTreeMap<String, Faults> = BTreeMap::new();
        for fault in records.iter().filter_map(|record| record.fault.as_ref()) {
            let of_kind = faults.entry(fault.kind.clone()).or_insert_with(|| Faults {
                count: 0,
                first: fault.message.clone(),
            });
            of_kind.count += 1;
        }
        let sum = |of: fn(&Record) -> usize| records.iter().map(of).sum::<usize>();
        let new_tokens = sum(|record| record.new_tokens);
        let answered = whole().count();
        self.loads.push(LoadResult {
            load,
            requests: records.len(),
            answered,
            faults,
            seconds,
            prompt_tokens: sum(|record| record.prompt_tokens),
            new_tokens,
            requests_per_second: answered as f64 / seconds,
            tokens_per_second: new_tokens as f64 / seconds,
            good_requests_per_second: self.goodput.map(|goodput| {
                let good = records.iter().filter(|record| goodput.accepts(record));
                good.count() as f64 / seconds
            }),
            time_to_first_token: Quantiles::of(whole().filter_map(Record::time_to_first_token)),
            between_tokens: Quantiles::of(whole().flat_map(Record::between_tokens)),
            time_per_output_token: Quantiles::of(whole().filter_map(Record::time_per_output_token)),
            end_to_end: Quantiles::of(whole().map(Record::end_to_end)),
            server: scrapes.map(|(before, after)| ServerSide::of(&before, &after, seconds)),
            records,
        });
    }

    /// Requests that were answered.
    pub fn answered(&self) -> usize {
        self.loads.iter().map(|load| load.answered).sum()
    }

    /// What the first request that went wrong has met.
    pub(super) fn first_fault(&self) -> Option<String> {
        let mut faults = self.loads.iter().flat_map(|load| &load.faults);
        let (kind, faults) = faults.next()?;
        Some(format!("{kind}: {}", faults.first))
    }

    /// What was asked, in a line.
    pub(super) fn about(&self) -> String {
        let prompts = match (self.prompt_tokens, self.prefix) {
            (Some(lengths), Some(prefix)) if prefix > 0.0 => format!(
                "prompts of {lengths} random tokens, the first {} of them in common",
                percentage(prefix)
            ),
            (Some(lengths), _) => format!("prompts of {lengths} random tokens"),
            (None, _) => "given prompts".to_owned(),
        };
        format!(
            "{} at {}: {prompts}, {} new tokens, temperature {}, seed {}",
            self.model, self.server, self.new_tokens, self.temperature, self.seed
        )
    }

    /// Requests and tokens per second.
    pub(super) fn throughput(&self) -> Table {
        let table = Table::new("Throughput")
            .texts(["load"])
            .numbers(["answered", "failed", "seconds", "requests/s"])
            .numbers(["tokens/s"]);
        let table = match self.goodput {
            Some(_) => table.numbers(["good requests/s", "good"]),
            None => table,
        };
        self.loads.iter().fold(table, |table, load| {
            let failed = load.requests - load.answered;
            let failed = match failed {
                0 => Cell::from("0"),
                failed => Cell::judged(grouped(failed as u64), Verdict::Bad),
            };
            let mut row: Vec<Cell> = vec![
                load.load.to_string().into(),
                grouped(load.answered as u64).into(),
                failed,
                brief(load.seconds).into(),
                brief(load.requests_per_second).into(),
                brief(load.tokens_per_second).into(),
            ];
            if let Some(good) = load.good_requests_per_second {
                row.push(brief(good).into());
                let share = good * load.seconds / load.requests.max(1) as f64;
                row.push(percentage(share).into());
            }
            table.row(row)
        })
    }

    /// Times that clients see.
    pub(super) fn latency(&self) -> Table {
        let table = Table::new("Milliseconds")
            .texts(["load", ""])
            .numbers(["mean", "p50", "p95", "p99", "longest"]);
        self.loads.iter().fold(table, |table, load| {
            let mut name = load.load.to_string();
            load.latencies().fold(table, |table, (what, times)| {
                let times = [times.mean, times.p50, times.p95, times.p99, times.longest];
                let cells = times.map(|time| Cell::from(brief(time * 1e3)));
                let labels = [std::mem::take(&mut name).into(), what.into()];
                table.row(labels.into_iter().chain(cells))
            })
        })
    }

    /// What the server says of itself; empty if it says nothing.
    pub(super) fn of_server(&self) -> Table {
        let table = Table::new("Server").texts(["load"]).numbers([
            "steps",
            "tokens a step",
            "ms a step",
            "outside of steps",
            "cached prompts",
            "preempted",
            "drafts accepted",
        ]);
        self.servers().fold(table, |table, (load, server)| {
            let accepted = match server.acceptance() {
                Some(share) => {
                    format!(
                        "{} of {}",
                        percentage(share),
                        grouped(server.drafted_tokens)
                    )
                }
                None => String::new(),
            };
            table.row([
                load.to_string().into(),
                grouped(server.steps).into(),
                brief(server.tokens_per_step).into(),
                brief(server.step_seconds * 1e3).into(),
                percentage(server.outside_of_steps).into(),
                percentage(server.prefix_hit_share).into(),
                grouped(server.preemptions).into(),
                accepted.into(),
            ])
        })
    }

    /// How experts are used, beside what the planner assumes; empty for a dense model.
    pub(super) fn experts(&self) -> Table {
        let table = Table::new("Experts")
            .texts(["load"])
            .numbers([
                "tokens a step",
                "experts a layer",
                "visited",
                "if chosen evenly",
                "tokens a visited one",
                "busiest ÷ mean",
            ])
            .note("Distinct experts that a step visits in a layer, on average; if T tokens choose k of E evenly, these are E(1 − (1 − k/E)^T).");
        self.servers().fold(table, |table, (load, server)| {
            let Some(experts) = server.experts else {
                return table;
            };
            table.row([
                load.to_string().into(),
                brief(server.tokens_per_step).into(),
                experts.experts.to_string().into(),
                brief(experts.distinct).into(),
                brief(experts.distinct_if_even).into(),
                brief(experts.tokens_per_expert).into(),
                brief(experts.busiest).into(),
            ])
        })
    }

    /// What went wrong.
    pub(super) fn faults(&self) -> Table {
        let table = Table::new("Failed requests")
            .texts(["load", "fault"])
            .numbers(["requests"])
            .texts(["the first one"]);
        self.loads.iter().fold(table, |table, load| {
            load.faults.iter().fold(table, |table, (kind, faults)| {
                table.row([
                    load.load.to_string().into(),
                    kind.as_str().into(),
                    grouped(faults.count as u64).into(),
                    faults.first.as_str().into(),
                ])
            })
        })
    }

    /// The loads of which the server has said something.
    pub(super) fn servers(&self) -> impl Iterator<Item = (Load, &ServerSide)> {
        let loads = self.loads.iter();
        loads.filter_map(|load| Some((load.load, load.server.as_ref()?)))
    }
}

impl LoadResult {
    /// The times that were measured, each with its name.
    pub(super) fn latencies(&self) -> impl Iterator<Item = (&'static str, Quantiles)> {
        let all = [
            ("to the first token", self.time_to_first_token),
            ("between tokens", self.between_tokens),
            ("per output token", self.time_per_output_token),
            ("end to end", self.end_to_end),
        ];
        all.into_iter()
            .filter_map(|(name, times)| Some((name, times?)))
    }
}

impl fmt::Display for LoadReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(formatter, "{}\n", self.about())?;
        write!(formatter, "{}\n{}", self.throughput(), self.latency())?;
        for table in [self.of_server(), self.experts(), self.faults()] {
            if !table.is_empty() {
                write!(formatter, "\n{table}")?;
            }
        }
        Ok(())
    }
}
