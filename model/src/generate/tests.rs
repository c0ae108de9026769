mod engine;
mod pictures;

use burn::tensor::{Device, Tensor};

use super::*;
use crate::language_model::token_tensor;
use crate::parameters::{MapParameter, map};
use crate::sampling::Sampler;
use crate::testing::{text, tiny};
use firebox_runtime::device::{default_name, select};
use firebox_runtime::on_every_device;
use firebox_runtime::testing::values;

on_every_device!(
    past_the_context_the_newest_half_is_read_again,
    a_prompt_beyond_the_context_loses_its_beginning,
    a_batch_gives_what_one_after_the_other_gives,
    drafts_on_every_device_change_nothing,
);

/// Of a context of 8.
fn short(device: &Device) -> LanguageModel {
    let mut config = tiny();
    config.context_length = 8;
    LanguageModel::random(&config, 3, device)
}

fn model(seed: u64) -> LanguageModel {
    LanguageModel::random(&tiny(), seed, &select(default_name()).unwrap())
}

fn continued(model: &LanguageModel, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut text = Vec::new();
    let cut = generate(model, prompt, count, &[], Sampling::greedy(), |id| {
        text.push(id);
        true
    });
    // The token after the first one that does not fit.
    let full = 8 - prompt.len().min(8) + 1;
    assert_eq!(cut, (full < count).then_some(full));
    text
}

/// Of each of `windows`, the likeliest token after that many of the newest ones, to which it is added.
fn expected(model: &LanguageModel, prompt: &[u32], windows: &[usize], device: &Device) -> Vec<u32> {
    let mut text = prompt.to_vec();
    for &window in windows {
        let tokens = token_tensor([&text[text.len() - window..]].into_iter(), device);
        let logits = model.forward(tokens).logits.narrow(1, window - 1, 1);
        text.push(Sampler::new(Sampling::greedy()).sample(&values(logits), &[], &[]));
    }
    text[prompt.len()..].to_vec()
}

fn past_the_context_the_newest_half_is_read_again(device: Device) {
    let model = short(&device);
    let prompt = [1, 2, 3];
    // The cache is full at 8; then the newest four of nine tokens are the text.
    let windows = [3, 4, 5, 6, 7, 8, 4, 5, 6, 7, 8, 4, 5, 6, 7, 8, 4, 5, 6, 7];
    let found = continued(&model, &prompt, windows.len());
    assert_eq!(found, expected(&model, &prompt, &windows, &device));
    // Another window gives another text.
    let sliding = [&windows[..6], &[8; 14]].concat();
    assert_ne!(found, expected(&model, &prompt, &sliding, &device));
}

fn a_prompt_beyond_the_context_loses_its_beginning(device: Device) {
    let model = short(&device);
    let prompt: Vec<u32> = (0..20).map(|place| place * 7 % 37).collect();
    let windows = [8, 4, 5, 6, 7, 8, 4];
    let found = continued(&model, &prompt, windows.len());
    assert_eq!(found, expected(&model, &prompt, &windows, &device));
    assert_eq!(found, continued(&model, &prompt[12..], windows.len()));
}

/// The texts of some requests, and how they ended.
#[derive(Debug, Default, PartialEq)]
struct Texts {
    tokens: Vec<Vec<u32>>,
    ended: Vec<Option<Ended>>,
    /// Texts in the order in which they ended.
    order: Vec<usize>,
}

impl Receiver for Texts {
    fn token(&mut self, text: usize, token: Token) -> bool {
        assert_eq!(self.ended[text], None);
        self.tokens[text].push(token.id);
        true
    }

    fn ended(&mut self, text: usize, ended: Ended) {
        assert_eq!(self.tokens[text].len(), ended.tokens);
        // What is shared depends on the neighbours.
        let ended = Ended { shared: 0, ..ended };
        assert_eq!(self.ended[text].replace(ended), None);
        self.order.push(text);
    }
}

fn run(model: &LanguageModel, requests: &[Request], options: Options) -> (Texts, Statistics) {
    let mut texts = Texts {
        tokens: vec![Vec::new(); requests.len()],
        ended: vec![None; requests.len()],
        order: Vec::new(),
    };
    let statistics = generate_all(
        &mut Local::new(model),
        requests.iter().cloned(),
        &options,
        &mut texts,
    );
    let tokens: usize = texts.tokens.iter().map(Vec::len).sum();
    assert_eq!(statistics.tokens, tokens);
    assert!(texts.ended.iter().all(Option::is_some));
    (texts, statistics)
}

/// Prompts of several lengths, at temperatures 0, 0.7 and 1.3, some of which exceed the context of 32.
fn requests(count: usize) -> Vec<Request> {
    let request = |number: usize| {
        Request::new(
            text(number + 1, [3, 11, 1, 24, 7][number % 5], 37).remove(number),
            count + 3 * (number % 4),
            Sampling {
                temperature: [0.0, 0.7, 1.3][number % 3],
                seed: number as u64,
                top_p: [1.0, 0.95][number % 2],
                repetition_penalty: [1.0, 1.0, 1.0, 1.2][number % 4],
                ..Sampling::default()
            },
        )
    };
    (0..9).map(request).collect()
}

fn with<'a>(batch: usize, draft: Draft<'a>, draft_tokens: DraftTokens) -> Options<'a> {
    Options {
        batch,
        draft,
        draft_tokens,
        ..Options::new(&[5])
    }
}

fn a_batch_gives_what_one_after_the_other_gives(device: Device) {
    let model = LanguageModel::random(&tiny(), 3, &device);
    let mut requests = requests(12);
    requests[4].count = 0;
    let (alone, _) = run(&model, &requests, Options::new(&[5]));
    assert!(alone.order.iter().copied().eq(0..requests.len()));
    for batch in [2, 4, 20] {
        let (together, statistics) = run(
            &model,
            &requests,
            with(batch, Draft::None, DraftTokens::Auto),
        );
        assert_eq!(together.tokens, alone.tokens, "{batch}");
        assert_eq!(together.ended, alone.ended, "{batch}");
        assert_eq!(statistics.drafted, 0);
    }
}

fn drafts_on_every_device_change_nothing(device: Device) {
    let [target, other] = [3, 4].map(|seed| LanguageModel::random(&tiny(), seed, &device));
    let requests = requests(9);
    let (plain, _) = run(&target, &requests, Options::new(&[5]));
    for draft in [Draft::PromptLookup, Draft::Model(&other)] {
        let (found, statistics) = run(&target, &requests, with(4, draft, DraftTokens::Fixed(3)));
        assert_eq!(found.tokens, plain.tokens, "{draft:?}");
        assert!(statistics.drafted > 0);
    }
}

#[test]
fn a_large_batch_changes_a_greedy_text_at_ties_alone() {
    let model = model(3);
    let request = |number: usize| {
        Request::new(
            text(number + 1, 1 + number % 11, 37).remove(number),
            18,
            Sampling::greedy(),
        )
    };
    let requests: Vec<Request> = (0..24).map(request).collect();
    let [(alone, _), (together, _)] = [1, 24].map(|batch| {
        run(
            &model,
            &requests,
            with(batch, Draft::None, DraftTokens::Auto),
        )
    });
    for (number, request) in requests.iter().enumerate() {
        let texts = [&alone, &together].map(|texts| &texts.tokens[number]);
        let Some(place) = (0..18).find(|&place| texts[0].get(place) != texts[1].get(place)) else {
            continue;
        };
        // Where they part, the two tokens are as good as tied.
        let before = [&request.prompt[..], &texts[0][..place]].concat();
        let tokens = token_tensor([&before[..]].into_iter(), &model.device());
        let logits = model.forward(tokens).logits.narrow(1, before.len() - 1, 1);
        let logits = values(logits);
        let [one, other] = texts.map(|text| logits[text.get(place).map_or(5, |&id| id as usize)]);
        assert!(
            (one - other).abs() < 1e-5,
            "text {number} at {place}: {one}, {other}"
        );
    }
}

#[test]
fn a_seed_gives_the_same_text_with_any_draft() {
    let [target, other] = [3, 4].map(model);
    let mut shorter = tiny();
    shorter.context_length = 12;
    let device = select(default_name()).unwrap();
    let shorter = LanguageModel::random(&shorter, 5, &device);
    let requests = requests(20);
    let (plain, _) = run(&target, &requests, Options::new(&[5]));
    assert!(
        plain
            .ended
            .iter()
            .flatten()
            .any(|ended| ended.end == End::Eos)
    );
    assert!(
        plain
            .ended
            .iter()
            .flatten()
            .any(|ended| ended.cut.is_some())
    );
    for draft in [
        Draft::PromptLookup,
        Draft::Model(&target),
        Draft::Model(&other),
        Draft::Model(&shorter),
    ] {
        for tokens in [1, 2, 4, 8]
            .map(DraftTokens::Fixed)
            .into_iter()
            .chain([DraftTokens::Auto])
        {
            for batch in [1, 5] {
                let (found, statistics) = run(&target, &requests, with(batch, draft, tokens));
                assert_eq!(found.tokens, plain.tokens, "{tokens:?}, {batch}");
                assert_eq!(found.ended, plain.ended, "{tokens:?}, {batch}");
                assert!(statistics.drafted > 0 || tokens == DraftTokens::Auto);
            }
        }
    }
}

/// Of one greedy text of `count` tokens.
fn greedy(count: usize) -> [Request; 1] {
    [Request::new(vec![1, 2, 3], count, Sampling::greedy())]
}

/// Prompts with a beginning of 20 tokens in common, of which a block is full, and some without.
fn prompts_that_begin_alike() -> Vec<Request> {
    let system = text(1, 20, 37).remove(0);
    let request = |number: usize| {
        Request::new(
            match number % 3 {
                2 => text(number + 1, 9, 37).remove(number),
                _ => [&system[..], &[number as u32, 7]].concat(),
            },
            6,
            Sampling::greedy(),
        )
    };
    (0..9).map(request).collect()
}

#[test]
fn what_prompts_begin_with_alike_is_read_once() {
    let model = model(3);
    let requests = prompts_that_begin_alike();
    let one_by_one: Vec<Vec<u32>> = requests
        .iter()
        .map(|request| {
            let (found, statistics) = run(&model, std::slice::from_ref(request), Options::new(&[]));
            assert_eq!(statistics.shared, 0);
            found.tokens.concat()
        })
        .collect();
    // One after the other, two neighbours have all 20 tokens in common, and the same place.
    for (batch, shared) in [(1, 3 * 20), (9, 5 * 16)] {
        for draft in [Draft::None, Draft::PromptLookup, Draft::Model(&model)] {
            let options = Options {
                eos_ids: &[],
                ..with(batch, draft, DraftTokens::Fixed(2))
            };
            let (found, statistics) = run(&model, &requests, options);
            assert_eq!(found.tokens, one_by_one, "{batch}, {draft:?}");
            assert_eq!(statistics.shared, shared, "{batch}, {draft:?}");
        }
    }
}

#[test]
fn a_first_token_in_common_does_not_keep_a_longer_beginning_away() {
    let model = model(3);
    let system = text(1, 20, 37).remove(0);
    let other = (system[1] + 1) % 37;
    let prompts = [
        ([&system[..], &[1]].concat(), 6),
        (vec![system[0], other], 2),
        // Takes the place of the second one, of which it keeps a token, while the first one goes on.
        ([&system[..], &[2]].concat(), 6),
    ];
    let requests = prompts.map(|(prompt, count)| Request::new(prompt, count, Sampling::greedy()));
    let (one_by_one, _) = run(&model, &requests, Options::new(&[]));
    let options = Options {
        eos_ids: &[],
        ..with(2, Draft::None, DraftTokens::Auto)
    };
    let (found, statistics) = run(&model, &requests, options);
    assert_eq!(found.tokens, one_by_one.tokens);
    assert_eq!(statistics.shared, 16);
}

#[test]
fn a_text_does_not_wait_for_one_that_has_ended() {
    let mut config = tiny();
    config.context_length = 2048;
    let model = LanguageModel::random(&config, 3, &select(default_name()).unwrap());
    // Read in two steps. Its only token fills a block, but is itself not read any more.
    let first = text(1, 70 * 16 - 1, 37).remove(0);
    let request = |prompt: Vec<u32>, count: usize| Request::new(prompt, count, Sampling::greedy());
    let alone = |request: &Request| {
        let (found, _) = run(&model, std::slice::from_ref(request), Options::new(&[]));
        found.tokens.concat()
    };
    let first = request(first, 1);
    let next = alone(&first);
    let second = request([&first.prompt[..], &next, &[1, 2, 3]].concat(), 4);
    let expected = [next, alone(&second)];
    for in_flight in [1, 2] {
        let options = Options {
            in_flight,
            eos_ids: &[],
            ..with(2, Draft::None, DraftTokens::Auto)
        };
        let (found, _) = run(&model, &[first.clone(), second.clone()], options);
        assert_eq!(found.tokens, expected, "{in_flight} in flight");
    }
}

#[test]
fn what_texts_hold_is_counted() {
    let model = model(3);
    let requests = prompts_that_begin_alike();
    let held = |batch: usize| {
        let options = Options {
            eos_ids: &[],
            ..with(batch, Draft::None, DraftTokens::Auto)
        };
        run(&model, &requests, options).1.cache_bytes
    };
    // Keys and values of 16 tokens in two layers, two heads of six values each.
    let block = 2 * 16 * 2 * 2 * 6 * 4;
    assert_eq!(held(1), 2 * block);
    // Six texts share one block and have another one, three have one.
    assert_eq!(held(9), (1 + 6 + 3) * block);
}

#[test]
fn a_draft_that_is_the_model_itself_is_accepted_whole() {
    let model = model(3);
    for depth in [1, 2, 4] {
        for temperature in [0.0, 1.0] {
            // The first token comes with the prompt.
            let mut requests = greedy(1 + 5 * (depth + 1));
            requests[0].sampling.temperature = temperature;
            let options = Options {
                eos_ids: &[],
                ..with(1, Draft::Model(&model), DraftTokens::Fixed(depth))
            };
            let (_, statistics) = run(&model, &requests, options);
            let expected = Statistics {
                tokens: 1 + 5 * (depth + 1),
                draws: 6,
                drafted: 5 * depth,
                accepted: 5 * depth,
                shared: 0,
                ..statistics
            };
            assert_eq!(statistics, expected);
        }
    }
}

#[test]
fn a_draft_that_is_always_wrong_changes_nothing() {
    struct Opposite;
    impl MapParameter for Opposite {
        fn map<const D: usize>(&mut self, path: &str, value: Tensor<D>) -> Tensor<D> {
            match path {
                "head" => value.neg(),
                _ => value,
            }
        }
    }
    let target = model(3);
    let opposite = map(model(3), &mut Opposite);
    let (plain, _) = run(&target, &greedy(20), Options::new(&[]));
    for depth in [1, 4] {
        let options = Options {
            eos_ids: &[],
            ..with(1, Draft::Model(&opposite), DraftTokens::Fixed(depth))
        };
        let (found, statistics) = run(&target, &greedy(20), options);
        assert_eq!(found.tokens, plain.tokens);
        assert_eq!((statistics.accepted, statistics.draws), (0, 20));
    }
}

#[test]
fn ends_inside_an_accepted_run() {
    let model = model(3);
    let (plain, _) = run(&model, &greedy(20), Options::new(&[]));
    let text = &plain.tokens[0];
    let drafted = |count: usize, eos_ids: &[u32]| {
        let options = Options {
            eos_ids,
            ..with(1, Draft::Model(&model), DraftTokens::Fixed(8))
        };
        let (found, _) = run(&model, &greedy(count), options);
        (found.tokens.concat(), found.ended[0].as_ref().unwrap().end)
    };
    for count in 1..20 {
        assert_eq!(drafted(count, &[]), (text[..count].to_vec(), End::Count));
    }
    for &eos in &text[..12] {
        let place = text.iter().position(|&id| id == eos).unwrap();
        assert_eq!(drafted(20, &[eos]), (text[..place].to_vec(), End::Eos));
    }
}

#[test]
fn a_stop_is_not_handed_on_and_emit_may_end_the_text() {
    let device = select(default_name()).unwrap();
    let model = short(&device);
    let text = continued(&model, &[1, 2, 3], 5);
    let stop = text.iter().position(|id| *id == text[3]).unwrap();
    let with = |stops: &[u32], most: usize| {
        let mut found = Vec::new();
        generate(&model, &[1, 2, 3], 5, stops, Sampling::greedy(), |id| {
            found.push(id);
            found.len() < most
        });
        found
    };
    assert_eq!(with(&text[3..4], 99), text[..stop]);
    assert_eq!(with(&[], 2), text[..2]);
}

#[test]
#[should_panic(expected = "a prompt has at least one token")]
fn a_prompt_is_not_empty() {
    let model = short(&select(default_name()).unwrap());
    let _ = continued(&model, &[], 1);
}
