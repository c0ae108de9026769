//! Sends requests as a load says, and takes down what comes of them.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use firebox_console::progress::Progress;
use firebox_serve::client::{Client, Reply};
use firebox_serve::route::Address;
use serde::Deserialize;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::ask::ask;
use super::server_side::Scrape;
use super::workload::{Workload, generator, uniform, vocabulary};
use super::{Goodput, Lengths, Load, LoadError, LoadReport, Prompts, Record};

/// How often to look whether the user wants to stop.
const LOOK: Duration = Duration::from_millis(50);

/// How long a server may take to count what it has answered.
const SETTLE: Duration = Duration::from_secs(5);

/// Time between two looks at its counters.
const AGAIN: Duration = Duration::from_millis(30);

/// Requests of a load where nobody says: so many for each that is under way at once, and at least so many.
const FOR_EACH: usize = 4;
const LEAST: usize = 32;

/// Requests of the warm-up in front of a load that has a rate.
const WARMUP: usize = 4;

/// What to measure.
#[derive(Debug, Clone)]
pub struct LoadOptions {
    /// What the server wants as `authorization: Bearer KEY`.
    pub key: Option<String>,
    /// The model; `None` for the first one that the server names.
    pub model: Option<String>,
    /// One after the other.
    pub loads: Vec<Load>,
    /// Requests of each load; `None` for as many as make sense, or as `seconds` allow.
    pub requests: Option<usize>,
    /// No requests are sent later than that in a load; those that are under way are read to the end.
    pub seconds: Option<f64>,
    /// The prompts.
    pub prompts: Prompts,
    /// Tokens to generate.
    pub new_tokens: Lengths,
    /// Temperature of the draws; 0 is greedy.
    pub temperature: f64,
    /// Seed of prompts, lengths, draws and arrivals.
    pub seed: u64,
    /// Requests in front of each load that do not count; `None` for as many as are under way at once.
    pub warmup: Option<usize>,
    /// Within which times a request is good.
    pub goodput: Option<Goodput>,
}

/// Measures a server until all loads are done, or `stopped` says so: then the report is of what there is.
///
/// # Errors
///
/// When there is no server, it has not OpenAI's interface or the model, or answers no request.
pub fn measure(
    address: &Address,
    options: &LoadOptions,
    stopped: impl Fn() -> bool,
) -> Result<LoadReport, LoadError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let client = Client::new(address.clone(), options.key.as_deref());
    let client = client.map_err(LoadError::Client)?;
    let runtime = runtime.map_err(LoadError::Client)?;
    runtime.block_on(measure_with(client, options, &stopped))
}

async fn measure_with(
    client: Client,
    options: &LoadOptions,
    stopped: &dyn Fn() -> bool,
) -> Result<LoadReport, LoadError> {
    let card = card(&client, options).await?;
    check_lengths(&card, options)?;
    let workload = Arc::new(Workload {
        vocabulary: match options.prompts {
            Prompts::Random { .. } => vocabulary(&client, &card.id, options.seed).await?,
            Prompts::Given(_) => None,
        },
        model: card.id.clone(),
        prompts: options.prompts.clone(),
        new_tokens: options.new_tokens,
        temperature: options.temperature,
        seed: options.seed,
    });
    let mut generator = Generator {
        progress: Progress::new("warming up", total(options)),
        client,
        workload,
        next: 0,
        stopped,
    };
    let mut report = LoadReport::new(generator.client.address(), &card.id, options);
    for &load in &options.loads {
        generator.progress.tell(format!("{load}: warming up"));
        let warmup = options.warmup.unwrap_or(match load {
            Load::Concurrency(requests) => requests,
            Load::Rate(_) => WARMUP,
        });
        let warm = match load {
            Load::Concurrency(_) => load,
            Load::Rate(_) => Load::Concurrency(WARMUP),
        };
        let limit = Limit {
            requests: Some(warmup),
            seconds: None,
        };
        let done = generator.run(warm, limit, false).await;
        check_answers(&done)?;
        let before = generator.scrape().await;
        let began = Instant::now();
        let limit = Limit {
            requests: requests(load, options),
            seconds: options.seconds,
        };
        let records = generator.run(load, limit, true).await;
        let seconds = began.elapsed().as_secs_f64();
        let after = generator.scrape().await;
        let server = before.zip(after);
        if stopped() && records.is_empty() {
            break;
        }
        report.add(load, records, seconds, server);
        if stopped() {
            break;
        }
    }
    match stopped() || report.loads.iter().any(|load| load.answered > 0) {
        true => Ok(report),
        false => Err(LoadError::Unanswered {
            first: report.first_fault().unwrap_or_default(),
        }),
    }
}

/// Requests of a load; `None` if its time alone is limited.
fn requests(load: Load, options: &LoadOptions) -> Option<usize> {
    let default = match load {
        Load::Concurrency(requests) => (FOR_EACH * requests).max(LEAST),
        Load::Rate(_) => LEAST,
    };
    match (options.requests, options.seconds) {
        (None, Some(_)) => None,
        (requests, _) => Some(requests.unwrap_or(default)),
    }
}

/// Requests of all loads; 0 if that is not known.
fn total(options: &LoadOptions) -> u64 {
    let loads = options.loads.iter().map(|&load| requests(load, options));
    loads.sum::<Option<usize>>().unwrap_or(0) as u64
}

/// A model of the server.
#[derive(Debug, Deserialize)]
struct Card {
    id: String,
    #[serde(default)]
    max_model_len: Option<usize>,
}

/// The model that is asked for.
async fn card(client: &Client, options: &LoadOptions) -> Result<Card, LoadError> {
    const PATH: &str = "/v1/models";
    #[derive(Deserialize)]
    struct List {
        data: Vec<Card>,
    }
    let address = || client.address().clone();
    let silent = |error| LoadError::Silent {
        address: address(),
        error,
    };
    let reply = client.get(PATH).await.map_err(silent)?;
    let status = reply.status();
    let whole = reply.whole().await.map_err(silent)?;
    let fault = |reason: String| LoadError::Interface {
        address: address(),
        path: PATH,
        reason,
    };
    match status {
        200 => (),
        401 | 403 => {
            return Err(LoadError::Key {
                address: address(),
                given: options.key.is_some(),
            });
        }
        status => return Err(fault(format!("it answers with status {status}"))),
    }
    let list: Result<List, _> = serde_json::from_slice(&whole);
    let List { data } = list.map_err(|error| fault(error.to_string()))?;
    let Some(name) = &options.model else {
        let first = data.into_iter().next();
        return first.ok_or_else(|| fault("it serves no model".to_owned()));
    };
    let served = data.iter().map(|card| card.id.clone()).collect();
    let found = data.into_iter().find(|card| card.id == *name);
    found.ok_or_else(|| LoadError::Model {
        address: address(),
        name: name.clone(),
        served,
    })
}

fn check_lengths(card: &Card, options: &LoadOptions) -> Result<(), LoadError> {
    let (Prompts::Random { lengths, .. }, Some(context)) = (&options.prompts, card.max_model_len)
    else {
        return Ok(());
    };
    match lengths.most + options.new_tokens.most <= context {
        true => Ok(()),
        false => Err(LoadError::TooLong {
            prompt: lengths.most,
            new: options.new_tokens.most,
            context,
        }),
    }
}

/// Checks that a request was answered, if there was one.
fn check_answers(records: &[Record]) -> Result<(), LoadError> {
    let faults = records.iter().map(|record| record.fault.as_ref());
    let faults: Option<Vec<_>> = faults.collect();
    match faults.as_deref() {
        Some([first, ..]) => Err(LoadError::Unanswered {
            first: format!("{}: {}", first.kind, first.message),
        }),
        _ => Ok(()),
    }
}

/// When a load sends no more requests.
#[derive(Debug, Clone, Copy)]
struct Limit {
    requests: Option<usize>,
    seconds: Option<f64>,
}

struct Generator<'a> {
    client: Client,
    workload: Arc<Workload>,
    /// Number of the next request.
    next: u64,
    progress: Progress,
    stopped: &'a dyn Fn() -> bool,
}

impl Generator<'_> {
    /// Sends the requests of a load, and waits for all of them, or until the user wants to stop.
    async fn run(&mut self, load: Load, limit: Limit, counts: bool) -> Vec<Record> {
        let first = self.next;
        let mut arrivals = generator(self.workload.seed ^ 1, first);
        let (mut records, mut running) = (Vec::new(), JoinSet::new());
        let mut tokens = 0;
        let began = Instant::now();
        // When the next request is due, in seconds, where a rate says so.
        let mut due = 0.0;
        loop {
            let now = began.elapsed().as_secs_f64();
            let is_over = |sent: u64| {
                limit.requests.is_some_and(|most| sent >= most as u64)
                    || limit.seconds.is_some_and(|most| now >= most)
            };
            while !is_over(self.next - first) {
                match load {
                    Load::Concurrency(most) if running.len() >= most => break,
                    Load::Rate(_) if due > now => break,
                    Load::Concurrency(_) => (),
                    Load::Rate(rate) => due -= (1.0 - uniform(&mut arrivals)).ln() / rate,
                }
                let body = self.workload.body(self.next);
                running.spawn(ask(self.client.clone(), body, began));
                self.next += 1;
            }
            let is_waiting = matches!(load, Load::Rate(_)) && !is_over(self.next - first);
            if (self.stopped)() || running.is_empty() && !is_waiting {
                return records;
            }
            let pause = match is_waiting {
                true => Duration::from_secs_f64((due - now).max(0.0)).min(LOOK),
                false => LOOK,
            };
            tokio::select! {
                Some(done) = running.join_next() => {
                    let record: Record = done.expect("requests are neither cancelled nor do they panic");
                    if counts {
                        tokens += record.new_tokens;
                        self.progress.advance(1);
                        let rate = tokens as f64 / began.elapsed().as_secs_f64();
                        self.progress.tell(format!("{load}: {rate:.0} tokens/s"));
                    }
                    records.push(record);
                }
                () = sleep(pause) => (),
            }
        }
    }

    /// What a Firebox server has counted, once it has counted all that it has answered.
    async fn scrape(&self) -> Option<Scrape> {
        let mut last = None;
        let began = Instant::now();
        loop {
            let reply = self.client.get("/metrics").await;
            let text = whole(reply).await.ok()??;
            let scrape = Scrape::read(&text)?;
            let is_settled = scrape.is_idle() && last.as_ref() == Some(&scrape);
            if is_settled || began.elapsed() > SETTLE || (self.stopped)() {
                return Some(scrape);
            }
            last = Some(scrape);
            sleep(AGAIN).await;
        }
    }
}

/// The text of a reply that is as it should be.
async fn whole(reply: io::Result<Reply>) -> io::Result<Option<String>> {
    let reply = reply?;
    let found = reply.status() == 200;
    let whole = timeout(SETTLE, reply.whole()).await??;
    Ok(String::from_utf8(whole).ok().filter(|_| found))
}
