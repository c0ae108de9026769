//! Texts that come and go, scores, and a cache that is full.

use std::collections::BTreeMap;

use burn::tensor::activation::log_softmax;

use super::*;
use crate::cache::BLOCK_TOKENS;
use crate::network::Network;

on_every_device!(
    scores_are_the_log_probabilities_of_the_model,
    experts_are_counted,
);

/// What was told of each text.
#[derive(Debug, Default)]
struct Told {
    began: Vec<(usize, usize)>,
    prompts: BTreeMap<usize, Vec<Scored>>,
    tokens: BTreeMap<usize, Vec<Token>>,
    ended: BTreeMap<usize, Ended>,
}

impl Told {
    fn ids(&self, text: usize) -> Vec<u32> {
        let tokens = self.tokens.get(&text).into_iter().flatten();
        tokens.map(|token| token.id).collect()
    }
}

impl Receiver for Told {
    fn began(&mut self, text: usize, shared: usize) {
        self.began.push((text, shared));
    }

    fn prompt_scored(&mut self, text: usize, scores: Vec<Scored>) {
        assert!(!self.tokens.contains_key(&text));
        self.prompts.entry(text).or_default().extend(scores);
    }

    fn token(&mut self, text: usize, token: Token) -> bool {
        assert!(!self.ended.contains_key(&text));
        self.tokens.entry(text).or_default().push(token);
        true
    }

    fn ended(&mut self, text: usize, ended: Ended) {
        assert_eq!(self.ids(text).len(), ended.tokens);
        assert!(self.ended.insert(text, ended).is_none());
    }
}

fn told(model: &LanguageModel, requests: &[Request], options: Options) -> Told {
    let mut told = Told::default();
    generate_all(
        &mut Local::new(model),
        requests.iter().cloned(),
        &options,
        &mut told,
    );
    assert_eq!(told.ended.len(), requests.len());
    told
}

/// What the scores of the tokens after the first one of a text are to be.
fn expected(model: &LanguageModel, text: &[u32]) -> Vec<Vec<f32>> {
    let tokens = token_tensor([text].into_iter(), &model.device());
    let logits = model.forward(tokens).logits.squeeze_dim::<2>(0);
    let rows = values(log_softmax(logits, 1));
    rows.chunks(37).map(<[f32]>::to_vec).collect()
}

fn scores_are_the_log_probabilities_of_the_model(device: Device) {
    let model = LanguageModel::random(&tiny(), 3, &device);
    let system = text(1, 18, 37).remove(0);
    let request = |number: usize| Request {
        likeliest: [Some(3), Some(0), None][number % 3],
        // Of the last one the prompt alone.
        scores_prompt: number % 3 < 2 && number != 4 || number == 5,
        // Bias, penalties and temperature are not of the model.
        bias: vec![(7, 5.0), (8, -100.0)],
        ..Request::new(
            [&system[..], &[number as u32]].concat(),
            [6, 0, 5, 8, 3, 2, 0][number % 7],
            Sampling {
                seed: number as u64,
                temperature: 1.4,
                repetition_penalty: 1.3,
                ..Sampling::default()
            },
        )
    };
    let requests: Vec<Request> = (0..7).map(request).collect();
    let mut ids = Vec::new();
    for (batch, step_tokens, draft) in [
        (1, 1024, Draft::None),
        (7, 1024, Draft::None),
        (4, 5, Draft::PromptLookup),
        (3, 7, Draft::Model(&model)),
    ] {
        let options = Options {
            step_tokens,
            ..with(batch, draft, DraftTokens::Fixed(2))
        };
        let told = told(&model, &requests, options);
        for (number, request) in requests.iter().enumerate() {
            let ended = &told.ended[&number];
            let mut text = [&request.prompt[..], &told.ids(number)].concat();
            text.extend(ended.last.iter().map(|token| token.id));
            let rows = expected(&model, &text);
            let of_prompt = told.prompts.get(&number).into_iter().flatten();
            let of_prompt: Vec<&Scored> = of_prompt.collect();
            assert_eq!(
                of_prompt.len(),
                [0, request.prompt.len() - 1][usize::from(request.scores_prompt)]
            );
            if request.scores_prompt {
                assert_eq!(ended.shared, 0);
            }
            let of_prompt = (1..).zip(of_prompt);
            let generated = told.tokens.get(&number).into_iter().flatten();
            let generated = (request.prompt.len()..).zip(generated.chain(&ended.last));
            let generated = generated.filter_map(|(place, token)| {
                assert_eq!(token.scored.is_some(), request.likeliest.is_some());
                Some((place, token.scored.as_ref()?))
            });
            for (place, scored) in of_prompt.chain(generated) {
                assert_eq!(scored.id, text[place]);
                let row = &rows[place - 1];
                let close = |id: u32, found: f32| (row[id as usize] - found).abs() < 1e-5;
                assert!(close(scored.id, scored.log_probability), "{scored:?}");
                assert_eq!(scored.likeliest.len(), request.likeliest.unwrap_or(0));
                for &(id, found) in &scored.likeliest {
                    assert!(close(id, found), "{scored:?}");
                }
                let least = scored.likeliest.last();
                let others = row
                    .iter()
                    .enumerate()
                    .filter(|(id, _)| scored.likeliest.iter().all(|other| other.0 != *id as u32));
                for (_, &other) in others {
                    assert!(least.is_none_or(|least| other < least.1 + 1e-5));
                }
            }
        }
        let all: Vec<Vec<u32>> = (0..7).map(|number| told.ids(number)).collect();
        assert!(all.iter().flatten().all(|&id| id != 8));
        ids.push(all);
    }
    assert!(ids.iter().all(|other| *other == ids[0]));
}

#[test]
fn a_full_cache_changes_no_text() {
    let model = model(3);
    let requests: Vec<Request> = requests(12)
        .into_iter()
        .chain(prompts_that_begin_alike())
        .collect();
    let (plain, _) = run(&model, &requests, Options::new(&[5]));
    let context = tiny().context_length;
    let mut preempted = 0;
    for (in_flight, block_tokens, more) in [(1, 4, 0), (1, 16, 0), (1, 1, 9), (3, 4, 2), (2, 8, 0)]
    {
        for draft in [Draft::None, Draft::PromptLookup, Draft::Model(&model)] {
            let options = Options {
                in_flight,
                block_tokens,
                blocks: Some(least_blocks(context, block_tokens) + more),
                kept: 5,
                ..with(6, draft, DraftTokens::Fixed(3))
            };
            let (found, statistics) = run(&model, &requests, options);
            assert_eq!(found.tokens, plain.tokens, "{in_flight}, {block_tokens}");
            preempted += statistics.preempted;
        }
    }
    assert!(preempted > 20, "{preempted}");
}

fn experts_are_counted(device: Device) {
    let model = LanguageModel::random(&tiny(), 3, &device);
    let mut network = Local::new(&model);
    let options = Options {
        counts_experts: true,
        ..with(3, Draft::None, DraftTokens::Auto)
    };
    let mut engine = Engine::new(&mut network, options);
    let mut told = Told::default();
    for request in requests(6) {
        engine.push(request, &mut told);
    }
    let (mut tokens, mut steps) = (0, 0);
    while let Some(report) = engine.step(&mut told) {
        tokens += report.tokens as u64;
        steps += 1;
    }
    let loads = engine.expert_loads();
    let moe = tiny().moe.unwrap();
    assert_eq!(loads.len(), tiny().layers.len());
    for loads in &loads {
        assert_eq!(loads.tokens.len(), moe.experts.count);
        assert_eq!(
            loads.tokens.iter().sum::<u64>(),
            tokens * moe.experts.top_k as u64
        );
        assert_eq!(loads.visited.iter().sum::<u64>(), steps);
        assert!(
            loads.visited[..moe.experts.top_k]
                .iter()
                .all(|&steps| steps == 0)
        );
    }
    assert!(engine.expert_loads().is_empty());
}

#[test]
fn a_small_cache_reads_long_prompts_one_after_the_other() {
    let model = model(3);
    // Each takes a good part of the cache, and they have nothing in common.
    let request = |number: usize| {
        let prompt = text(number + 1, 24, 37).remove(number);
        Request::new(prompt, 4, Sampling::greedy())
    };
    let requests: Vec<Request> = (0..8).map(request).collect();
    let options = Options {
        eos_ids: &[],
        step_tokens: 5,
        block_tokens: 4,
        blocks: Some(least_blocks(tiny().context_length, 4) + 6),
        ..with(8, Draft::None, DraftTokens::Auto)
    };
    let (found, statistics) = run(&model, &requests, options);
    let (plain, _) = run(&model, &requests, Options::new(&[]));
    assert_eq!(found.tokens, plain.tokens);
    assert_eq!(statistics.preempted, 0);
}

#[test]
fn texts_come_and_go() {
    let model = model(3);
    let requests = requests(14);
    let (plain, _) = run(&model, &requests, Options::new(&[5]));
    for in_flight in [1, 2] {
        let mut network = Local::new(&model);
        let options = Options {
            in_flight,
            kept: 2,
            ..with(3, Draft::PromptLookup, DraftTokens::Fixed(2))
        };
        let mut engine = Engine::new(&mut network, options);
        let mut told = Told::default();
        let mut expected_stops = Vec::new();
        // A new one now and then; some go before they begin, some in the middle.
        for (step, request) in requests.iter().enumerate() {
            let number = engine.push(request.clone(), &mut told);
            if step % 4 == 3 {
                let gone = [number, number - 2][step / 4 % 2];
                if !told.ended.contains_key(&gone) {
                    expected_stops.push(gone);
                }
                engine.cancel(gone, &mut told);
                // Once more does nothing.
                engine.cancel(gone, &mut told);
            }
            for _ in 0..step % 3 {
                engine.step(&mut told);
            }
        }
        while engine.step(&mut told).is_some() {}
        assert_eq!((engine.running(), engine.waiting()), (0, 0));
        assert_eq!(engine.blocks()[0], 0);
        assert!(!expected_stops.is_empty());
        for (number, expected) in plain.tokens.iter().enumerate() {
            let (found, end) = (told.ids(number), told.ended[&number].end);
            if expected_stops.contains(&number) {
                assert_eq!(end, End::Stopped);
                assert!(expected.starts_with(&found));
            } else {
                assert_eq!(&found, expected);
                assert_ne!(end, End::Stopped);
            }
        }
    }
}

#[test]
fn what_ended_texts_begin_with_is_kept() {
    let model = model(3);
    let prompts = prompts_that_begin_alike();
    let mut network = Local::new(&model);
    let options = Options {
        eos_ids: &[],
        kept: 4,
        ..with(1, Draft::None, DraftTokens::Auto)
    };
    let mut engine = Engine::new(&mut network, options);
    let mut told = Told::default();
    let mut shared = Vec::new();
    // The others between two of the same beginning take places of their own.
    for number in [0, 2, 5, 8, 1] {
        engine.push(prompts[number].clone(), &mut told);
        while engine.step(&mut told).is_some() {}
        shared.push(told.ended[&(shared.len())].shared);
    }
    assert_eq!(shared, [0, 0, 0, 0, BLOCK_TOKENS]);
    assert_eq!(engine.statistics().shared, BLOCK_TOKENS);
    assert_eq!(
        told.began,
        [(0, 0), (1, 0), (2, 0), (3, 0), (4, BLOCK_TOKENS)]
    );
    // A cache that is not bounded is never full.
    assert_eq!(engine.network.cache().free_blocks(), None);
}

#[test]
fn choices_of_a_seed_differ_and_are_each_the_same_again() {
    let model = model(3);
    let request = |choice: u64| {
        let sampling = Sampling {
            temperature: 1.0,
            choice,
            ..Sampling::default()
        };
        Request::new(vec![1, 2, 3], 20, sampling)
    };
    let requests: Vec<Request> = (0..4).map(request).collect();
    let (alone, _) = run(&model, &requests, Options::new(&[]));
    let together = Options {
        eos_ids: &[],
        ..with(4, Draft::PromptLookup, DraftTokens::Fixed(3))
    };
    let (together, _) = run(&model, &requests, together);
    assert_eq!(alone.tokens, together.tokens);
    for one in 0..4 {
        for other in 0..one {
            assert_ne!(alone.tokens[one], alone.tokens[other]);
        }
    }
}

#[test]
fn a_request_has_ends_of_its_own() {
    let model = model(3);
    let (plain, _) = run(&model, &greedy(20), Options::new(&[]));
    let text = &plain.tokens[0];
    let first = |id: u32| text.iter().position(|&other| other == id).unwrap();
    let ended = |ignores_eos: bool, stop: u32| {
        let [request] = greedy(20);
        let request = Request {
            ignores_eos,
            stop_ids: vec![stop],
            ..request
        };
        let told = told(&model, &[request], Options::new(&text[4..5]));
        assert_eq!(told.ended[&0].end, End::Eos);
        (told.ids(0).len(), told.ended[&0].last.clone().unwrap().id)
    };
    let (eos, later) = (first(text[4]), first(text[9]));
    assert_eq!(
        ended(false, text[9]),
        (eos.min(later), text[eos.min(later)])
    );
    assert_eq!(ended(true, text[9]), (later, text[9]));
}
