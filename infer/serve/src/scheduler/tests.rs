use std::thread::{self, JoinHandle};

use firebox_model::config::ModelConfig;
use firebox_model::generate::{Draft, DraftTokens, generate_all, least_blocks};
use firebox_model::language_model::LanguageModel;
use firebox_model::network::Local;
use firebox_model::sampling::Sampling;
use firebox_model::testing::tiny;
use firebox_runtime::device::{default_name, select};
use firebox_text::Tokenizer;

use super::*;
use crate::job::{Events, Inbox, Sent};
use crate::metrics::Build;
use crate::text::{Stops, TextWriter};

/// The end of a text of the byte tokenizer.
const EOS: u32 = 256;

fn config() -> ModelConfig {
    ModelConfig {
        vocab_size: 257,
        context_length: 96,
        ..tiny()
    }
}

fn model() -> LanguageModel {
    LanguageModel::random(&config(), 3, &select(default_name()).unwrap())
}

fn metrics() -> Arc<Metrics> {
    let build = Build {
        version: "test",
        device: "flex",
        dtype: "f32",
        model: "tiny",
    };
    Arc::new(Metrics::new(build, &[(0, 8), (1, 8)], 4))
}

/// With a small cache, so that texts are computed again now and then.
fn options() -> generate::Options<'static> {
    generate::Options {
        batch: 3,
        kept: 4,
        step_tokens: 20,
        block_tokens: 8,
        blocks: Some(least_blocks(96, 8) + 4),
        counts_experts: true,
        draft: Draft::PromptLookup,
        draft_tokens: DraftTokens::Fixed(2),
        ..generate::Options::new(&[EOS])
    }
}

/// A scheduler on a thread with a model, until it is dropped.
struct Running {
    scheduler: Scheduler,
    metrics: Arc<Metrics>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn new(most: usize) -> Self {
        let scheduler = Scheduler::new(most);
        let metrics = metrics();
        let (of_thread, counted) = (scheduler.clone(), metrics.clone());
        let model = model();
        let thread = thread::spawn(move || {
            of_thread.run(&mut Local::new(&model), options(), &counted);
        });
        Self {
            scheduler,
            metrics,
            thread: Some(thread),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.scheduler.abort();
        if let Some(thread) = self.thread.take() {
            let ended = thread.join();
            assert!(ended.is_ok() || thread::panicking());
        }
    }
}

fn request(number: usize) -> Request {
    let prompt = format!("the same beginning for all of them, and then {number}");
    Request {
        likeliest: number.is_multiple_of(2).then_some(2),
        scores_prompt: number.is_multiple_of(4),
        ..Request::new(
            prompt.bytes().map(u32::from).collect(),
            [12, 1, 30, 0, 25][number % 5],
            Sampling {
                temperature: [0.0, 1.0][number % 2],
                seed: number as u64,
                ..Sampling::default()
            },
        )
    }
}

fn job(request: &Request, stops: &[&str], events: Events) -> Job {
    let stops: Vec<String> = stops.iter().map(|&stop| stop.to_owned()).collect();
    let tokenizer = Arc::new(Tokenizer::bytes());
    Job {
        prompt: request.prompt.clone().into(),
        count: request.count,
        sampling: request.sampling,
        bias: request.bias.clone().into(),
        stop_ids: request.stop_ids.clone().into(),
        ignore_eos: request.ignores_eos,
        scores: request.likeliest,
        prompt_scores: request.scores_prompt,
        pictures: None,
        text: TextWriter::new(tokenizer, &request.prompt, false, Stops::new(&stops), false),
        events,
    }
}

fn jobs(requests: &[Request]) -> (Inbox, Vec<Job>) {
    let (inbox, events) = Inbox::new(requests.len());
    let jobs = requests.iter().zip(events);
    (
        inbox,
        jobs.map(|(request, events)| job(request, &[], events))
            .collect(),
    )
}

fn next(inbox: &mut Inbox) -> Option<Sent> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    runtime.block_on(std::future::poll_fn(|context| inbox.poll_next(context)))
}

/// All events of each job.
fn events(inbox: &mut Inbox, jobs: usize) -> Vec<Vec<Event>> {
    let mut events = vec![Vec::new(); jobs];
    while let Some(sent) = next(inbox) {
        events[sent.choice].push(sent.event);
    }
    events
}

/// What is to be generated: each text by itself.
struct Plain(Vec<u32>);

impl Receiver for Plain {
    fn token(&mut self, _: usize, token: generate::Token) -> bool {
        self.0.push(token.id);
        true
    }

    fn ended(&mut self, _: usize, ended: Ended) {
        self.0.extend(ended.last.map(|token| token.id));
    }
}

fn plainly(model: &LanguageModel, request: &Request) -> Vec<u32> {
    let mut plain = Plain(Vec::new());
    let options = generate::Options::new(&[EOS]);
    generate_all(
        &mut Local::new(model),
        [request.clone()],
        &options,
        &mut plain,
    );
    plain.0
}

#[test]
fn texts_are_those_of_generate_whatever_stands_beside_them() {
    let running = Running::new(100);
    let requests: Vec<Request> = (0..20).map(request).collect();
    let (mut inbox, jobs) = jobs(&requests);
    running.scheduler.submit(jobs).unwrap();
    let model = model();
    let mut generated = 0;
    for (request, events) in requests.iter().zip(events(&mut inbox, requests.len())) {
        assert!(matches!(events[0], Event::Started { .. }), "{events:?}");
        let Some(Event::Ended { finish, text: rest }) = events.last() else {
            panic!("{events:?}");
        };
        let (mut ids, mut text, mut scored) = (Vec::new(), String::new(), 0);
        for event in &events[1..events.len() - 1] {
            match event {
                Event::Prompt(scores) => scored += scores.len(),
                Event::Token {
                    id,
                    text: more,
                    scored,
                    ..
                } => {
                    assert_eq!(scored.is_some(), request.likeliest.is_some());
                    ids.push(*id);
                    text.push_str(more);
                }
                other => panic!("{other:?}"),
            }
        }
        text.push_str(rest);
        let expected = plainly(&model, request);
        assert_eq!(ids, expected);
        assert_eq!(
            scored,
            [0, request.prompt.len() - 1][usize::from(request.scores_prompt)]
        );
        let shown: Vec<u32> = ids.iter().copied().filter(|&id| id != EOS).collect();
        assert_eq!(text, Tokenizer::bytes().decode(&shown));
        assert_eq!(
            *finish == Finish::Length,
            ids.last() != Some(&EOS) || ids.is_empty()
        );
        generated += ids.len();
    }
    assert!(generated > 50);
    let metrics = &running.metrics;
    assert!(metrics.prefix_hits.get() > 0 && metrics.preemptions.get() > 0);
    assert!(metrics.drafts.get() > 0 && metrics.step_tokens.get_sample_count() > 0);
}

#[test]
fn everything_is_given_back_and_counted_when_there_is_nothing_to_do() {
    let running = Running::new(100);
    let requests: Vec<Request> = (0..7).map(request).collect();
    let (mut inbox, jobs) = jobs(&requests);
    running.scheduler.submit(jobs).unwrap();
    events(&mut inbox, requests.len());
    let metrics = running.metrics.clone();
    // Ends the thread when it has counted.
    drop(running);
    assert_eq!((metrics.running.get(), metrics.waiting.get()), (0, 0));
    assert_eq!(metrics.cache_blocks.get(), 0);
    // Each token of a step goes to two experts of each layer.
    let read = metrics.step_tokens.get_sample_sum();
    for experts in &metrics.expert_tokens {
        let tokens: u64 = experts.iter().map(|expert| expert.get()).sum();
        assert_eq!(tokens as f64, 2.0 * read);
    }
    let steps = metrics.step_tokens.get_sample_count();
    assert_eq!(metrics.step_experts.get_sample_count(), 2 * steps);
}

#[test]
fn a_stop_string_ends_a_text_before_the_next_step() {
    let running = Running::new(10);
    let model = model();
    let long = Request {
        likeliest: None,
        scores_prompt: false,
        ..request(2)
    };
    let ids = plainly(&model, &long);
    let text = Tokenizer::bytes().decode(&ids);
    let stop: String = text.chars().skip(5).take(2).collect();
    let before = &text[..text.find(&stop).unwrap()];
    let (mut inbox, sent) = Inbox::new(1);
    let jobs = sent.into_iter().map(|events| job(&long, &[&stop], events));
    running.scheduler.submit(jobs.collect()).unwrap();
    let events = events(&mut inbox, 1).remove(0);
    let shown: String = events
        .iter()
        .map(|event| match event {
            Event::Token { text, .. } | Event::Ended { text, .. } => text.as_str(),
            _ => "",
        })
        .collect();
    assert_eq!(shown, before);
    let tokens = events
        .iter()
        .filter(|event| matches!(event, Event::Token { .. }));
    assert!(tokens.count() < ids.len());
    let reason = Finish::Stop(StopReason::Text(stop));
    assert!(matches!(events.last(), Some(Event::Ended { finish, .. }) if *finish == reason));
}

#[test]
fn a_client_that_goes_away_frees_its_place() {
    let running = Running::new(200);
    let endless = Request {
        ignores_eos: true,
        ..Request::new(vec![1, 2, 3], 90, Sampling::greedy())
    };
    // Far more than run at once, so that they would take seconds.
    let requests = vec![endless; 150];
    let (mut inbox, gone) = jobs(&requests);
    running.scheduler.submit(gone).unwrap();
    // Some are in the making.
    assert!(next(&mut inbox).is_some());
    drop(inbox);
    let (mut inbox, jobs) = jobs(&[request(1)]);
    running.scheduler.submit(jobs).unwrap();
    let events = events(&mut inbox, 1).remove(0);
    assert!(matches!(events.last(), Some(Event::Ended { .. })));
    let drawn = running.metrics.step_tokens.get_sample_sum();
    assert!(drawn < 75.0 * 90.0, "{drawn}");
}

#[test]
fn a_full_queue_says_when_to_try_again() {
    // Nobody takes the jobs.
    let scheduler = Scheduler::new(3);
    let requests: Vec<Request> = (0..4).map(request).collect();
    assert_eq!(scheduler.most(), 3);
    let (_inbox, four) = jobs(&requests);
    assert!(scheduler.submit(four).is_err());
    let (mut inbox, two) = jobs(&requests[..2]);
    scheduler.submit(two).unwrap();
    let (_other, more) = jobs(&requests[..2]);
    let rejected = scheduler.submit(more).unwrap_err();
    let Rejected::QueueFull { retry_after } = rejected else {
        panic!("{rejected:?}");
    };
    assert!((1..=60).contains(&retry_after.as_secs()));
    let (_last, one) = jobs(&requests[..1]);
    scheduler.submit(one).unwrap();
    scheduler.abort();
    assert_eq!(events(&mut inbox, 2), [[Event::Failed], [Event::Failed]]);
    let (_late, one) = jobs(&requests[..1]);
    assert_eq!(scheduler.submit(one), Err(Rejected::Closed));
}

#[test]
fn jobs_fail_when_the_thread_that_has_the_model_ends() {
    let scheduler = Scheduler::new(10);
    let requests: Vec<Request> = (0..3).map(request).collect();
    let (mut inbox, jobs) = jobs(&requests);
    scheduler.submit(jobs).unwrap();
    let of_thread = scheduler.clone();
    let model = model();
    let panicked = thread::spawn(move || {
        // The cache has no room for one text.
        let options = generate::Options {
            blocks: Some(1),
            ..options()
        };
        of_thread.run(&mut Local::new(&model), options, &metrics());
    });
    assert!(panicked.join().is_err());
    for events in events(&mut inbox, 3) {
        assert_eq!(events, [Event::Failed]);
    }
}
