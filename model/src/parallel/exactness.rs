//! Many ranks give what one gives.

use std::collections::BTreeMap;
use std::sync::Arc;

use firebox_comm::{Comm, CommError, Operation, Options, Traffic, threads};
use firebox_runtime::device::{default_name, select};
use firebox_runtime::testing::values;

use super::traffic::{PassTokens, PassTraffic};
use super::{Driver, RankLayout, Ranks, Shard, dismiss, serve};
use crate::batch::Sequence;
use crate::captions::Captioned;
use crate::config::{ModelConfig, QkNorm};
use crate::evaluate::{Evaluation, evaluate};
use crate::generate::{
    self, Draft, DraftTokens, End, Ended, Engine, Receiver, Request, Statistics, Token,
    generate_all, least_blocks,
};
use crate::language_model::{LanguageModel, Trace};
use crate::looking::{CANDIDATES, Effort, Look, look};
use crate::moe::loads::ExpertLoads;
use crate::moe::stats::HealthSums;
use crate::network::{Local, Network, PaddedRows};
use crate::parameters::RandomParameters;
use crate::sampling::{Sampling, Scored};
use crate::testing::{
    clamped, latent, latent_multiplied, moe, picture, seeing, text, tiny, windowed, with_experts,
    with_open_gates, without_positions,
};
use crate::timeline::{Activity, Span};
use crate::vision::{Picture, PictureBatch};

const SEED: u64 = 7;

fn layout([pipeline, tensor, expert]: [usize; 3]) -> RankLayout {
    RankLayout {
        pipeline,
        tensor,
        expert,
    }
}

fn model(config: &ModelConfig) -> LanguageModel {
    with_open_gates(LanguageModel::random(
        config,
        SEED,
        &select(default_name()).unwrap(),
    ))
}

/// What the first rank makes of the model of [`model`], and what each rank has sent among the tensor ranks of its stage and
/// along the pipeline.
fn on_ranks<T: Send + 'static>(
    config: &ModelConfig,
    layout: RankLayout,
    command: impl Fn(&mut Driver) -> T + Send + Sync + 'static,
) -> (T, Vec<[Traffic; 2]>) {
    let config = config.clone();
    let rank = move |world: Arc<dyn Comm>| {
        let ranks = Ranks::new(world, layout)?;
        let shard = Shard::new(&config, layout, ranks.world().rank()).expect("a layout that fits");
        let device = select(default_name()).unwrap();
        let mut source = RandomParameters::new(SEED, &device).of_shard(shard);
        let Ok(model) = LanguageModel::new(&config, &mut source);
        let model = with_open_gates(model).among(ranks.tensor().clone());
        let result = match ranks.is_first() {
            true => {
                let result = command(&mut Driver::new(&model, &ranks));
                dismiss(&ranks);
                Some(result)
            }
            false => {
                serve(&model, &ranks);
                None
            }
        };
        Ok::<_, CommError>((result, ranks.traffic()))
    };
    let results = threads::run(layout.ranks(), &Options::default(), rank).expect("no rank fails");
    let (mut results, traffic): (Vec<_>, Vec<_>) = results.into_iter().unzip();
    (results.swap_remove(0).expect("that of the first"), traffic)
}

/// Models with everything that a layer can have, and layouts that fit them.
fn cases() -> Vec<(&'static str, ModelConfig, Vec<[usize; 3]>)> {
    let mut shared = tiny();
    moe(&mut shared).experts.shared_d_ff = 5;
    moe(&mut shared).experts.shared_gate = true;
    shared.tied_embeddings = true;
    let mut normed = tiny();
    normed.qk_norm = QkNorm::Projection;
    let mut by_head = without_positions();
    by_head.qk_norm = QkNorm::Head;
    let mut single = with_experts(5, 2);
    single.kv_heads = 1;
    let all = vec![
        [1, 2, 1],
        [2, 1, 1],
        [1, 3, 1],
        [2, 3, 1],
        [1, 4, 2],
        [2, 4, 4],
    ];
    vec![
        ("tiny", tiny(), all.clone()),
        (
            "dense",
            tiny().dense_baseline(),
            vec![[2, 1, 1], [1, 3, 1], [2, 4, 1]],
        ),
        ("windows, sinks, a dense layer", windowed(), all.clone()),
        ("clamped experts with biases", clamped(), all.clone()),
        ("shared experts, a tied head", shared, all.clone()),
        ("a norm over all heads", normed, all.clone()),
        ("a norm of each head", by_head, all.clone()),
        (
            "pictures",
            seeing(),
            [all, vec![[3, 1, 1], [4, 2, 1]]].concat(),
        ),
        (
            "latent attention",
            latent(),
            vec![[2, 1, 1], [1, 3, 1], [2, 4, 2]],
        ),
        (
            "latent attention of another kind, factors",
            latent_multiplied(),
            vec![[1, 2, 1], [2, 3, 1]],
        ),
        (
            "one key/value head, five experts",
            single,
            vec![[2, 3, 3], [1, 4, 2], [2, 2, 2]],
        ),
    ]
}

fn values_of(trace: Trace) -> Vec<(String, Vec<f32>)> {
    let hidden = trace.hidden.into_iter().enumerate();
    let hidden = hidden.map(|(number, hidden)| (format!("hidden {number}"), values(hidden)));
    let routers = trace.output.routing.into_iter().map(|routing| {
        let name = format!("router {}", routing.layer);
        (name, values(routing.logits))
    });
    let logits = ("logits".to_owned(), values(trace.output.logits));
    let tower = trace.vision.into_iter().flat_map(|vision| {
        let parts = vision.parts.into_iter();
        let parts = parts.map(|(part, of)| (format!("{part:?}"), values(of)));
        let states = ("states".to_owned(), values(vision.states));
        parts.chain([states]).collect::<Vec<_>>()
    });
    let outputs = hidden.chain(routers).chain([logits]);
    outputs.chain(tower).collect()
}

/// Three rows of eleven tokens, which see these pictures.
fn rows<'a>(ids: &'a [u32], pictures: Option<&'a PictureBatch>) -> PaddedRows<'a> {
    PaddedRows {
        ids,
        valid: &[true; 33],
        length: 11,
        pictures,
    }
}

fn traced_text(network: &mut impl Network) -> Vec<(String, Vec<f32>)> {
    let ids = text(3, 11, network.config().vocab_size).concat();
    values_of(network.trace(rows(&ids, None)))
}

/// Two rows see a picture from their second token on, and the row between them none.
fn traced_seeing(network: &mut impl Network) -> Vec<(String, Vec<f32>)> {
    let pictures = vec![Some(picture(1, 2)), None, Some(picture(2, 1))];
    let visible = (0..33).flat_map(|token| match (&pictures[token / 11], token % 11) {
        (None, _) | (_, 0) => vec![false; 2],
        (Some(picture), _) => picture.used.clone(),
    });
    let batch = PictureBatch {
        slots: 1,
        visible: visible.collect(),
        pictures: pictures.clone(),
    };
    let ids = text(3, 11, network.config().vocab_size).concat();
    values_of(network.trace(rows(&ids, Some(&batch))))
}

fn traced(network: &mut impl Network) -> Vec<(String, Vec<f32>)> {
    let mut found = traced_text(network);
    if network.config().vision.is_some() {
        found.extend(traced_seeing(network));
    }
    found
}

#[test]
fn every_value_is_that_of_one_rank() {
    for (name, config, layouts) in cases() {
        let expected = traced(&mut Local::new(&model(&config)));
        for numbers in layouts {
            let layout = layout(numbers);
            let (found, _) = on_ranks(&config, layout, |driver| traced(driver));
            assert_eq!(found.len(), expected.len(), "{name}, {layout}");
            for ((what, found), (_, expected)) in found.iter().zip(&expected) {
                let largest = expected.iter().fold(0f32, |a, b| a.max(b.abs()));
                let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs());
                let off = off.fold(0f32, f32::max) / largest;
                // A pipeline computes the same; more ranks of a stage add up in another order.
                let allowed = if numbers[1] == 1 { 0.0 } else { 3e-6 };
                assert!(off <= allowed, "{name}, {layout}, {what}: {off:e}");
            }
        }
    }
}

fn evaluated(network: &mut impl Network) -> Evaluation {
    let windows = text(7, 13, network.config().vocab_size);
    let sequences = windows.iter().enumerate().map(|(number, tokens)| {
        Sequence::of_window(&tokens[..13 - number], 12, (number > 3).then_some(0))
    });
    // Batches with positions and without do not mix.
    let (plain, documents) = sequences.partition::<Vec<_>, _>(|s| s.positions.is_none());
    let all = plain.into_iter().chain(documents).collect::<Vec<_>>();
    evaluate(network, all.into_iter(), 50, 1, |_| {})
}

#[test]
fn losses_and_router_health_are_those_of_one_rank() {
    for (name, config, layouts) in cases() {
        let expected = evaluated(&mut Local::new(&model(&config)));
        for numbers in layouts {
            let layout = layout(numbers);
            let (found, _) = on_ranks(&config, layout, |driver| evaluated(driver));
            assert_eq!(found.tokens, expected.tokens);
            let off = (found.nats_per_token / expected.nats_per_token - 1.0).abs();
            assert!(off < 1e-6, "{name}, {layout}: {off:e}");
            for (found, expected) in found.layers.iter().zip(&expected.layers) {
                assert_eq!((found.layer, &found.load), (expected.layer, &expected.load));
                let off = (found.entropy / expected.entropy - 1.0).abs();
                assert!(off < 1e-5, "{name}, {layout}: {off:e}");
            }
            assert_eq!(found.layers.len(), expected.layers.len());
        }
    }
}

/// Texts that see pictures, some of them the same ones, beside texts that see none.
#[test]
fn texts_see_the_pictures_that_they_see_on_one_rank() {
    let texts = |network: &mut dyn Network| {
        let image = network.config().image_token().expect("an image token");
        let mut look = |pictures: &[Picture]| Some(Arc::new(network.look(pictures)));
        let seen = [
            look(&[picture(1, 2)]),
            None,
            look(&[picture(2, 1), picture(3, 2)]),
        ];
        let request = |number: usize| {
            let mut prompt = text(1, 18, 37).remove(0);
            prompt[1..1 + number % 3].fill(image);
            Request {
                pictures: seen[[0, 0, 2, 1][number % 4]].clone(),
                ..Request::new(prompt, 6, Sampling::greedy())
            }
        };
        // More texts than places, so that each place sees several pictures, and again in a second session.
        let mut all = Texts(vec![Vec::new(); 9]);
        let options = generate::Options {
            batch: 3,
            in_flight: 2,
            ..generate::Options::new(&[])
        };
        for _ in 0..2 {
            generate_all(network, (0..9).map(request), &options, &mut all);
        }
        all
    };
    let config = seeing();
    let expected = texts(&mut Local::new(&model(&config)));
    assert_ne!(expected.0[0], expected.0[2]);
    for numbers in [[1, 2, 1], [2, 1, 1], [4, 1, 1], [2, 3, 1], [3, 4, 2]] {
        let layout = layout(numbers);
        let (found, _) = on_ranks(&config, layout, move |driver| texts(driver));
        assert_eq!(found, expected, "{layout}");
    }
}

#[test]
fn captions_are_looked_at_as_on_one_rank() {
    let looked = |network: &mut dyn Network| {
        let shared = Arc::new(picture(1, 2));
        let caption = |number: usize| {
            let tokens = text(20, 5 + number % 4, 37).remove(number);
            let captioned = Captioned::new(None, 37, &tokens, number % 2, 12, None);
            Captioned {
                picture: match number % 3 {
                    0 => Some(shared.clone()),
                    1 => Some(Arc::new(picture(number, 1))),
                    _ => None,
                },
                ..captioned
            }
        };
        let captions: Vec<Captioned> = (0..20).map(caption).collect();
        let mut health = HealthSums::default();
        let effort = Effort { tried: 2, rows: 6 };
        let mut rows = 0;
        let looks = look(network, &captions, effort, &mut health, |done| rows += done);
        assert_eq!(rows, effort.rows_of(20));
        let of = |look: &Look| {
            let choice = look.choice.iter().flat_map(|choice| choice.nats.clone());
            let other = look.other.map(|other| other.nats);
            let nats = [look.right, look.none].into_iter().chain(other);
            nats.chain(choice).collect::<Vec<f64>>()
        };
        let nats: Vec<f64> = looks.iter().flat_map(of).collect();
        let weights = network.attention_to_pictures(&captions[..4]);
        (nats, health.health(), weights)
    };
    let config = seeing();
    let (nats, layers, weights) = looked(&mut Local::new(&model(&config)));
    assert_eq!(nats.len(), 60 + 2 * CANDIDATES);
    assert_eq!(weights.len(), config.cross_layers().count());
    for numbers in [
        [1, 2, 1],
        [2, 1, 1],
        [4, 1, 1],
        [1, 4, 2],
        [2, 3, 1],
        [3, 4, 2],
    ] {
        let layout = layout(numbers);
        let (found, _) = on_ranks(&config, layout, move |driver| looked(driver));
        let allowed = if numbers[1] == 1 { 0.0 } else { 3e-6 };
        for (found, expected) in found.0.iter().zip(&nats) {
            assert!((found / expected - 1.0).abs() <= allowed, "{layout}");
        }
        for (found, expected) in found.1.iter().zip(&layers) {
            assert_eq!((found.layer, &found.load), (expected.layer, &expected.load));
        }
        assert_eq!(
            (found.1.len(), found.2.len()),
            (layers.len(), weights.len())
        );
        for (found, expected) in found.2.iter().zip(&weights) {
            assert_eq!(found.layer, expected.layer, "{layout}");
            assert_eq!(found.weights.len(), expected.weights.len());
            let off = found.weights.iter().zip(&expected.weights);
            let off = off.map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
            assert!(f64::from(off) <= allowed, "{layout}: {off:e}");
        }
    }
}

#[derive(Debug, Default, PartialEq)]
struct Texts(Vec<Vec<u32>>);

impl Receiver for Texts {
    fn token(&mut self, text: usize, token: Token) -> bool {
        self.0[text].push(token.id);
        true
    }

    fn ended(&mut self, _: usize, _: Ended) {}
}

/// Takes no notice.
struct Ignoring;

impl Receiver for Ignoring {
    fn token(&mut self, _: usize, _: Token) -> bool {
        true
    }

    fn ended(&mut self, _: usize, _: Ended) {}
}

/// Some beginnings are alike, and some texts exceed the context.
fn requests() -> Vec<Request> {
    let request = |number: usize| {
        Request::new(
            text(3, [3, 20, 1, 24, 7][number % 5], 37).remove(number % 3),
            9 + 5 * (number % 4),
            Sampling {
                temperature: [0.0, 0.7, 1.3][number % 3],
                seed: number as u64,
                top_k: [0, 0, 9][number % 3],
                top_p: [1.0, 0.9][number % 2],
                min_p: [0.0, 0.0, 0.0, 0.02][number % 4],
                repetition_penalty: [1.0, 1.0, 1.2][number % 3],
                frequency_penalty: [0.0, 0.1][number % 2],
                ..Sampling::default()
            },
        )
    };
    (0..9).map(request).collect()
}

fn generated(
    network: &mut impl Network,
    batch: usize,
    in_flight: usize,
    draft: Draft,
) -> (Texts, Statistics) {
    let requests = requests();
    let mut texts = Texts(vec![Vec::new(); requests.len()]);
    let options = generate::Options {
        batch,
        in_flight,
        draft,
        draft_tokens: DraftTokens::Fixed(3),
        ..generate::Options::new(&[5])
    };
    let statistics = generate_all(network, requests, &options, &mut texts);
    (texts, statistics)
}

#[test]
fn texts_are_those_of_one_rank_with_any_draft_and_number_in_flight() {
    for (name, config, layouts) in cases() {
        let whole = model(&config);
        let (expected, _) = generated(&mut Local::new(&whole), 1, 1, Draft::None);
        for numbers in layouts {
            let layout = layout(numbers);
            let (runs, _) = on_ranks(&config, layout, move |driver| {
                let draft = LanguageModel::random(
                    driver.config(),
                    SEED + 1,
                    &select(default_name()).unwrap(),
                );
                [
                    generated(driver, 1, 1, Draft::None),
                    generated(driver, 5, 1, Draft::PromptLookup),
                    generated(driver, 8, 4, Draft::None),
                    generated(driver, 9, 16, Draft::Model(&draft)),
                ]
            });
            for (number, (found, statistics)) in runs.iter().enumerate() {
                assert_eq!(found, &expected, "{name}, {layout}, run {number}");
                // Texts of other groups share what is cached too.
                assert!(statistics.shared > 0 || number < 3);
            }
        }
    }
}

/// What was told of texts, in a form that can be compared.
#[derive(Debug, Default)]
struct Told {
    tokens: BTreeMap<usize, Vec<u32>>,
    scores: BTreeMap<usize, Vec<f32>>,
    stopped: Vec<usize>,
}

impl Receiver for Told {
    fn prompt_scored(&mut self, text: usize, scores: Vec<Scored>) {
        let scores = scores.iter().map(|scored| scored.log_probability);
        self.scores.entry(text).or_default().extend(scores);
    }

    fn token(&mut self, text: usize, token: Token) -> bool {
        let scored = token.scored.map(|scored| scored.log_probability);
        self.scores.entry(text).or_default().extend(scored);
        self.tokens.entry(text).or_default().push(token.id);
        true
    }

    fn ended(&mut self, text: usize, ended: Ended) {
        if ended.end == End::Stopped {
            self.stopped.push(text);
        }
    }
}

/// Texts that come, go, are scored, and do not fit the cache together; and the tokens of each layer's experts, which are asked
/// for while steps are under way, with the tokens of all steps.
fn served(network: &mut dyn Network, in_flight: usize) -> (Told, Vec<Vec<u64>>, u64) {
    let context = network.config().context_length;
    let layers = network.config().layers.len();
    let options = generate::Options {
        batch: 5,
        in_flight,
        kept: 2,
        step_tokens: 7,
        blocks: Some(least_blocks(context, 4) + 3),
        block_tokens: 4,
        counts_experts: true,
        ..generate::Options::new(&[5])
    };
    let mut engine = Engine::new(network, options);
    let (mut told, mut experts, mut read) = (Told::default(), vec![Vec::new(); layers], 0);
    for (number, request) in requests().into_iter().enumerate() {
        let request = Request {
            likeliest: (number % 2 == 1).then_some(2),
            scores_prompt: number % 4 == 1,
            ..request
        };
        engine.push(request, &mut told);
    }
    // Before anything of it is read.
    engine.cancel(8, &mut told);
    let mut add = |loads: Vec<ExpertLoads>| {
        for loads in loads {
            let sums: &mut Vec<u64> = &mut experts[loads.layer];
            sums.resize(loads.tokens.len(), 0);
            let both = sums.iter_mut().zip(loads.tokens);
            both.for_each(|(sum, tokens)| *sum += tokens);
        }
    };
    while let Some(report) = engine.step(&mut told) {
        read += report.tokens as u64;
        add(engine.expert_loads());
    }
    assert!(engine.is_done());
    drop(engine);
    (told, experts, read)
}

#[test]
fn texts_come_and_go_as_on_one_rank() {
    let config = tiny();
    let whole = model(&config);
    let (expected, ..) = served(&mut Local::new(&whole), 1);
    assert_eq!(expected.stopped, [8]);
    assert!(expected.scores.len() > 3);
    for numbers in [[2, 1, 1], [1, 2, 1], [2, 2, 2]] {
        let layout = layout(numbers);
        for in_flight in [1, 4] {
            let (found, _) = on_ranks(&config, layout, move |driver| served(driver, in_flight));
            let (found, experts, read) = found;
            assert_eq!(found.tokens, expected.tokens, "{layout}, {in_flight}");
            assert_eq!(found.stopped, expected.stopped);
            for (text, scores) in &expected.scores {
                let found = &found.scores[text];
                assert_eq!(found.len(), scores.len(), "{layout}, text {text}");
                let off = found.iter().zip(scores).map(|(a, b)| (a - b).abs());
                assert!(off.fold(0f32, f32::max) < 1e-5, "{layout}, text {text}");
            }
            // Two experts for each token, in each layer, on whichever stage it is.
            for experts in experts {
                assert_eq!(experts.iter().sum::<u64>(), 2 * read, "{layout}");
            }
        }
    }
}

#[test]
fn a_hundred_and_twenty_layers_on_a_hundred_and_twenty_eight_ranks() {
    let mut config = with_experts(16, 2);
    config.layers = vec![config.layers[0]; 120];
    (config.heads, config.kv_heads) = (8, 1);
    config.initializer_range = 0.1;
    let whole = model(&config);
    let expected = (
        evaluated(&mut Local::new(&whole)),
        generated(&mut Local::new(&whole), 4, 1, Draft::None).0,
    );
    for numbers in [[5, 3, 1], [16, 8, 1], [16, 8, 4]] {
        let layout = layout(numbers);
        let (found, _) = on_ranks(&config, layout, |driver| {
            (evaluated(driver), generated(driver, 9, 4, Draft::None).0)
        });
        let off = (found.0.nats_per_token / expected.0.nats_per_token - 1.0).abs();
        assert!(off < 1e-6, "{layout}: {off:e}");
        assert_eq!(found.1, expected.1, "{layout}");
    }
}

#[test]
fn what_ranks_send_is_what_is_predicted() {
    let with_pictures = cases().into_iter().filter_map(|case| {
        let sees = case.1.vision.is_some();
        sees.then_some((case, true))
    });
    let cases = cases().into_iter().map(|case| (case, false));
    for ((name, config, layouts), see) in cases.chain(with_pictures) {
        for numbers in layouts {
            let layout = layout(numbers);
            let (_, before) = on_ranks(&config, layout, |_| ());
            let (_, traffic) = on_ranks(&config, layout, move |driver| match see {
                true => drop(traced_seeing(driver)),
                false => drop(traced_text(driver)),
            });
            let tokens = PassTokens {
                count: 33,
                width: size_of::<f32>(),
                see,
            };
            for (rank, (traffic, before)) in traffic.iter().zip(before).enumerate() {
                let shard = Shard::new(&config, layout, rank).unwrap();
                let [tensor, pipeline] = [0, 1].map(|place| traffic[place].since(&before[place]));
                let predicted = PassTraffic::of_rank(&config, &shard, tokens);
                for (counted, predicted) in [
                    (tensor.of(Operation::AllReduceSum), predicted.sums()),
                    (pipeline.of(Operation::Send), predicted.hops),
                ] {
                    let counted = (counted.calls, counted.bytes);
                    let predicted = (predicted.count, predicted.bytes);
                    assert_eq!(counted, predicted, "{name}, {layout}, rank {rank}");
                }
            }
        }
    }
}

/// Spans by stage and activity, without the times.
fn recorded(spans: &[Span]) -> BTreeMap<(usize, Activity), Vec<(u64, usize)>> {
    let mut by_stage = BTreeMap::new();
    for span in spans {
        let key = (span.stage, span.activity);
        let steps: &mut Vec<(u64, usize)> = by_stage.entry(key).or_default();
        steps.push((span.step, span.tokens));
    }
    by_stage
}

#[test]
fn each_stage_records_each_step() {
    let config = tiny();
    let record = |network: &mut dyn Network| {
        network.record();
        generate_all(
            network,
            requests(),
            &generate::Options::new(&[5]),
            &mut Ignoring,
        );
        recorded(&network.spans())
    };
    let alone = record(&mut Local::new(&model(&config)));
    let steps = &alone[&(0, Activity::Compute)];
    assert_eq!(alone.len(), 1);
    let steps = steps.clone();
    for numbers in [[2, 1, 1], [2, 2, 1], [1, 2, 1]] {
        let layout = layout(numbers);
        let (found, _) = on_ranks(&config, layout, move |driver| record(driver));
        let last = layout.pipeline - 1;
        let activities = (0..layout.pipeline).flat_map(|stage| {
            let wait = (stage > 0).then_some((stage, Activity::Wait));
            let send = (stage < last).then_some((stage, Activity::Send));
            wait.into_iter()
                .chain([(stage, Activity::Compute)])
                .chain(send)
        });
        assert!(found.keys().copied().eq(activities), "{layout}: {found:?}");
        assert!(found.values().all(|found| *found == steps), "{layout}");
    }
}

#[test]
fn a_rank_that_panics_is_named() {
    let config = tiny();
    let layout = layout([2, 2, 1]);
    let rank = move |world: Arc<dyn Comm>| {
        let ranks = Ranks::new(world, layout)?;
        let shard = Shard::new(&config, layout, ranks.world().rank()).expect("a layout that fits");
        let device = select(default_name()).unwrap();
        let mut source = RandomParameters::new(SEED, &device).of_shard(shard);
        let Ok(model) = LanguageModel::new(&config, &mut source);
        let model = model.among(ranks.tensor().clone());
        match ranks.world().rank() {
            0 => drop(generated(
                &mut Driver::new(&model, &ranks),
                4,
                2,
                Draft::None,
            )),
            3 => panic!("no more"),
            _ => serve(&model, &ranks),
        }
        Ok::<_, CommError>(())
    };
    let failed = threads::run(layout.ranks(), &Options::default(), rank).unwrap_err();
    assert!(
        failed.to_string().starts_with("rank 3 panicked: no more"),
        "{failed}"
    );
}
