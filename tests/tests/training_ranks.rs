//! Many ranks train a model as one does: gradients and whole runs, with any number of ranks after a resume.
//!
//! Ranks are threads here, which give the bits of processes under MPI (`train/tests/mpi.rs`).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::Device;
use firebox_checkpoint::{Accept, TensorFile, load_weights, read_config};
use firebox_comm::{Comm, CommError, Options, threads};
use firebox_model::batch::Sequence;
use firebox_model::config::{BalanceKind, ModelConfig};
use firebox_model::language_model::LanguageModel;
use firebox_model::parallel::{Holding, Slice};
use firebox_model::parameters::RandomParameters;
use firebox_model::testing::moe;
use firebox_runtime::control::Control;
use firebox_runtime::on_every_device;
use firebox_tests::fixtures;
use firebox_tests::models::{bits, sequences, tiny};
use firebox_tests::runs::{TestRun, copy_at, same_losses};
use firebox_tests::tensors::relative_error;
use firebox_train::check::RankPlan;
use firebox_train::config::{Muon, OptimizerConfig, RunConfig};
use firebox_train::gradient::{BatchResult, GradientSum, gradient_of};
use firebox_train::learned::Learned;
use firebox_train::optimizer::Optimizer;
use firebox_train::ranks::{Team, TrainLayout, launch};
use firebox_train::trainer::{self, Resume};

on_every_device!(the_gradient_does_not_depend_on_the_number_of_ranks);

/// The same f32 terms, added in another order.
const ROUNDING: f64 = 5e-6;

/// Copies of the model, parts of the experts of each, and ranks that divide the matrices of each of these.
fn layout([data, expert, tensor]: [usize; 3]) -> TrainLayout {
    TrainLayout {
        data,
        expert,
        tensor,
    }
}

/// What all ranks have of a gradient, put together.
#[derive(Debug)]
struct Whole {
    loss: f64,
    total_loss: f64,
    norm: f64,
    tokens: u64,
    load: Vec<Vec<f64>>,
    biases: Vec<Vec<f32>>,
    gradients: BTreeMap<String, Vec<f32>>,
    /// After a step by these.
    weights: BTreeMap<String, Vec<f32>>,
}

/// The same of one rank.
struct Alone {
    result: BatchResult,
    weights: BTreeMap<String, Vec<f32>>,
}

/// Of a step. A first update of AdamW would show the sign of each gradient alone, were epsilon not as large.
const OPTIMIZER: OptimizerConfig = OptimizerConfig {
    learning_rate: 1e-2,
    beta1: 0.9,
    beta2: 0.95,
    epsilon: 0.1,
    weight_decay: 0.1,
    clip_norm: 1.0,
    muon: Muon::None,
    muon_momentum: Some(0.9),
    // So that the places of the experts count, of which each rank has some.
    expert_interval: 2,
    gate_rate: 1.0,
};

/// The weights after a step: those that are here, by path.
fn stepped(
    mut optimizer: Optimizer,
    model: LanguageModel,
    gradients: GradientSum,
    muon: Muon,
) -> BTreeMap<String, Vec<f32>> {
    let config = OptimizerConfig { muon, ..OPTIMIZER };
    let model = optimizer.step(model, gradients, 0.5, config.learning_rate, &config);
    let weights = bits(&model).into_iter();
    let weights =
        weights.map(|(path, bits)| (path, bits.into_iter().map(f32::from_bits).collect()));
    weights.collect()
}

/// What one rank computes.
fn alone(muon: Muon, make: &Make, rows: &[Sequence], micro_batch: usize, device: &Device) -> Alone {
    let team = Team::default();
    let model = make(&team);
    let optimizer = Optimizer::new(model.config(), muon, Learned::Everything, &team);
    let gradient = || gradient_of(&optimizer, &model, rows, micro_batch, device);
    let (result, again) = (gradient(), gradient());
    Alone {
        result,
        weights: stepped(optimizer, model, again.gradients, muon),
    }
}

/// A model that is made whole, or as a rank's part.
type Make = Arc<dyn Fn(&Team) -> LanguageModel + Send + Sync>;

/// That of a seed.
fn random(config: &ModelConfig, device: &Device) -> Make {
    let (config, device) = (config.clone(), device.clone());
    Arc::new(move |team| {
        let mut source = RandomParameters::new(7, &device);
        if let Some(shard) = team.shard(&config) {
            source = source.of_shard(shard);
        }
        let Ok(model) = LanguageModel::new(&config, &mut source);
        team.joined(model).train()
    })
}

/// The gradient of some rows, of which each rank has a share.
fn on_ranks(
    layout: TrainLayout,
    muon: Muon,
    make: &Make,
    rows: &[Sequence],
    micro_batch: usize,
    device: &Device,
) -> Whole {
    let (make, rows, device) = (Arc::clone(make), rows.to_vec(), device.clone());
    let body = move |world: Arc<dyn Comm>| {
        let team = Team::new(world, layout);
        let model = make(&team);
        let optimizer = Optimizer::new(model.config(), muon, Learned::Everything, &team);
        let own = &rows[team.share(rows.len())];
        let result = gradient_of(&optimizer, &model, own, micro_batch, &device);
        let gradients = result.gradients.by_path().iter();
        let gradients = gradients.map(|(path, gradient)| {
            let owned = optimizer.ownership().of(path);
            let owned = owned.expect("one of several ranks");
            let places: Vec<usize> = owned.own_places().into_iter().flatten().collect();
            let values = gradient.to_data().iter::<f32>().collect::<Vec<f32>>();
            assert_eq!(values.len(), places.len(), "{path}");
            let elements = owned.slice().of().iter().product();
            (path.clone(), elements, places.into_iter().zip(values))
        });
        let gradients: Vec<(String, usize, _)> = gradients.collect();
        let health = result.health.health().into_iter();
        let whole = Whole {
            loss: result.loss,
            total_loss: result.total_loss,
            norm: result.gradient_norm,
            tokens: result.tokens,
            load: health.map(|layer| layer.load).collect(),
            biases: result.scores.balancing_biases(&[]),
            gradients: BTreeMap::new(),
            weights: BTreeMap::new(),
        };
        let parameters = LanguageModel::parameter_list(model.config());
        let shard = model.shard().cloned();
        let mut weights = stepped(optimizer, model, result.gradients, muon);
        let weights = parameters.into_iter().map(move |parameter| {
            let own = weights.remove(&parameter.path).expect("weights");
            let holding = shard.as_ref().map(|shard| shard.holding(&parameter));
            let all = || Holding::Part(Slice::whole(parameter.shape.clone()));
            (parameter.path.clone(), holding.unwrap_or_else(all), own)
        });
        let weights: Vec<(String, Holding, Vec<f32>)> = weights.collect();
        Ok::<_, CommError>((whole, gradients, weights))
    };
    let ended = threads::run(layout.ranks(), &Options::default(), body).expect("no rank fails");
    let mut ranks = ended.into_iter();
    let (mut whole, mut parts, mut weights) = ranks.next().expect("a first rank");
    for (other, gradients, own) in ranks {
        assert_eq!(
            (other.loss, other.norm, &other.biases),
            (whole.loss, whole.norm, &whole.biases),
            "every rank knows the same"
        );
        parts.extend(gradients);
        weights.extend(own);
    }
    for (path, elements, values) in parts {
        let none = || vec![f32::NAN; elements];
        let of_path = whole.gradients.entry(path).or_insert_with(none);
        for (place, value) in values {
            assert!(of_path[place].is_nan(), "one owner of each value");
            of_path[place] = value;
        }
    }
    let mut gradients = whole.gradients.iter();
    let has_owner = |values: &[f32]| values.iter().all(|value| value.is_finite());
    assert!(gradients.all(|(_, values)| has_owner(values)));
    for (path, holding, own) in weights {
        let Holding::Part(slice) = holding else {
            assert!(own.iter().all(|&value| value == 0.0), "{path}");
            continue;
        };
        let elements = slice.of().iter().product();
        let none = || vec![f32::NAN; elements];
        let of_path = whole.weights.entry(path.clone()).or_insert_with(none);
        for (place, value) in slice.runs().flatten().zip(own) {
            let is_same = of_path[place].is_nan() || of_path[place].to_bits() == value.to_bits();
            assert!(is_same, "{layout}: copies of {path} differ");
            of_path[place] = value;
        }
    }
    whole
}

/// Compares what ranks have computed together with what one has.
fn same(
    what: &str,
    whole: &Whole,
    Alone {
        result: alone,
        weights,
    }: &Alone,
) {
    assert_eq!(whole.weights.len(), weights.len());
    for (path, expected) in weights {
        let error = relative_error(&whole.weights[path], expected);
        assert!(
            error < ROUNDING,
            "{what}: weights of {path} off by {error:.1e}"
        );
    }
    let near = |name: &str, found: f64, expected: f64| {
        let error = (found / expected - 1.0).abs();
        assert!(error < ROUNDING, "{what}: {name} {found}, {expected}");
    };
    near("loss", whole.loss, alone.loss);
    near("total loss", whole.total_loss, alone.total_loss);
    near("norm", whole.norm, alone.gradient_norm);
    assert_eq!(whole.tokens, alone.tokens);
    let load = alone.health.health().into_iter();
    let load: Vec<Vec<f64>> = load.map(|layer| layer.load).collect();
    assert_eq!(whole.load, load, "{what}");
    let biases = alone.scores.balancing_biases(&[]).concat();
    if !biases.is_empty() {
        let error = relative_error(&whole.biases.concat(), &biases);
        assert!(error < ROUNDING, "{what}: biases off by {error:.1e}");
    }
    for (path, found) in &whole.gradients {
        // One rank has no gradient of what the loss does not depend on; several have zeros.
        let Some(expected) = alone.gradients.by_path().get(path) else {
            assert!(found.iter().all(|&value| value == 0.0), "{what}: {path}");
            continue;
        };
        let expected: Vec<f32> = expected.to_data().iter::<f32>().collect();
        let error = relative_error(found, &expected);
        assert!(error < ROUNDING, "{what}: {path} off by {error:.1e}");
    }
    let paths = alone.gradients.by_path().keys();
    assert!(
        paths
            .into_iter()
            .all(|path| whole.gradients.contains_key(path))
    );
}

fn the_gradient_does_not_depend_on_the_number_of_ranks(device: Device) {
    let device = device.autodiff();
    let mut pooled = tiny();
    moe(&mut pooled).router.balance = BalanceKind::Pooled;
    let mut quantile = tiny();
    let router = &mut moe(&mut quantile).router;
    (router.balance, router.balance_coefficient) = (BalanceKind::Quantile, 0.0);
    for config in [tiny(), pooled, quantile] {
        let make = random(&config, &device);
        // Ranks with much padding, and shares of different size.
        let rows = sequences(&config, 7, 12, &[0, 7, 0, 3, 11, 2, 0]);
        for (ranks, micro_batch, muon) in [
            ([2, 1, 1], 7, Muon::None),
            ([3, 1, 1], 2, Muon::Dense),
            ([4, 1, 1], 1, Muon::All),
            ([1, 2, 1], 7, Muon::None),
            ([1, 4, 1], 1, Muon::All),
            // The last rank has a row less than the others.
            ([2, 2, 1], 1, Muon::All),
            ([1, 1, 2], 7, Muon::None),
            ([1, 1, 3], 2, Muon::Dense),
            ([2, 1, 2], 2, Muon::None),
            ([1, 2, 2], 7, Muon::All),
            ([2, 2, 2], 1, Muon::None),
        ] {
            let layout = layout(ranks);
            let whole = on_ranks(layout, muon, &make, &rows, micro_batch, &device);
            let alone = alone(muon, &make, &rows, 7, &device);
            same(
                &format!("{layout}, {micro_batch} at a time"),
                &whole,
                &alone,
            );
        }
    }
}

#[test]
fn every_family_has_the_gradient_of_one_rank() {
    let device = Device::flex().autodiff();
    for (name, folder) in fixtures::cases() {
        let config = read_config(&folder, Accept::Nothing).expect("a config.json");
        let rows = sequences(&config.model, 5, 12, &[0, 4, 0, 0, 11]);
        let experts = config.model.moe.as_ref().map(|moe| moe.experts.count);
        let make: Make = {
            let (device, config) = (device.clone(), config.clone());
            Arc::new(move |team| {
                let shard = team.shard(&config.model);
                let weights =
                    load_weights(&folder, &config, &config.model, shard.as_ref(), &device);
                team.joined(weights.expect("weights")).train()
            })
        };
        let alone = alone(Muon::None, &make, &rows, 2, &device);
        let mut layouts = vec![[2, 1, 1], [1, 1, 2]];
        if experts.is_some_and(|count| count.is_multiple_of(2)) {
            layouts.extend([[1, 2, 1], [1, 2, 2]]);
        }
        for ranks in layouts {
            let layout = layout(ranks);
            let whole = on_ranks(layout, Muon::None, &make, &rows, 2, &device);
            same(&format!("{name}, {layout}"), &whole, &alone);
        }
    }
}

/// Runs, or goes on, with so many ranks.
fn train(test: &TestRun, layout: TrainLayout, out: &str, set: &[&str], resume: Resume) {
    let (config, options) = (test.config(set), test.options(out, "flex", resume));
    let check = || Ok(());
    let outcome = launch::run(layout, Some(layout.ranks()), check, move |team| {
        trainer::run(&config, &options, team, &Control::default())
    });
    assert!(outcome.expect("a run").is_some());
}

/// Rounding grows from step to step: twelve steps take losses 3e-6 apart.
const OF_A_RUN: f64 = 2e-5;

/// Of four sequences at first.
const BATCHES: [&str; 1] = ["schedule.batch_tokens={ start = 128, end = 256, ramp_steps = 8 }"];

/// A recipe, a layout, and another one to go on with.
type Case = (&'static [&'static str], [usize; 3], [usize; 3]);

const CASES: [Case; 3] = [
    (&[], [3, 1, 1], [1, 1, 2]),
    (&["optimizer.muon=all"], [2, 1, 2], [1, 2, 1]),
    (
        &[
            "model.router.balance=quantile",
            "model.router.bias_update_rate=0",
            "optimizer.muon=all",
            "train.zero_outputs=true",
        ],
        [1, 2, 2],
        [2, 2, 1],
    ),
];

#[test]
fn a_run_has_the_losses_of_one_rank_and_resumes_with_any_number() {
    let test = TestRun::new();
    for (number, (recipe, ranks, others)) in CASES.into_iter().enumerate() {
        let name = |of: &str| format!("{of}-{number}");
        let path = |of: &str| test.path(&name(of));
        let recipe = [&BATCHES, recipe].concat();
        let train = |ranks, out: &str, resume| {
            train(&test, layout(ranks), &name(out), &recipe, resume);
        };
        train([1, 1, 1], "alone", Resume::Never);
        train(ranks, "many", Resume::Never);
        same_losses("many ranks", &path("many"), &path("alone"), OF_A_RUN);
        sends_what_was_planned(&test.config(&recipe), layout(ranks), &path("many"));
        // Everything that a checkpoint has, in the same files and tensors.
        let tensors = |run: &str, file: &str| {
            let file = path(run).join("checkpoints/step-0000012").join(file);
            let file = TensorFile::open(&file).expect("tensors");
            let tensors = file.tensors().iter();
            let tensors = tensors.map(|(name, info)| (name.clone(), info.shape.clone()));
            tensors.collect::<Vec<_>>()
        };
        let names = |run: &str| -> Vec<String> {
            let files = fixtures::files(&path(run).join("checkpoints/step-0000012"));
            files.into_keys().collect()
        };
        assert_eq!(names("many"), names("alone"));
        for file in FILES {
            assert_eq!(tensors("many", file), tensors("alone", file));
        }

        // In the same layout, to the last byte.
        copy_at(&path("many"), &path("again"), 6);
        train(ranks, "again", Resume::Required);
        for file in FILES {
            let bytes = |run: &str| {
                let file = path(run).join("checkpoints/step-0000012").join(file);
                fs::read(file).expect("a file of a checkpoint")
            };
            assert!(bytes("again") == bytes("many"), "{file}");
        }

        // From many to one to others.
        copy_at(&path("many"), &path("one"), 4);
        train([1, 1, 1], "one", Resume::Required);
        copy_at(&path("one"), &path("others"), 8);
        train(others, "others", Resume::Required);
        same_losses(
            "from many to one to others",
            &path("others"),
            &path("alone"),
            OF_A_RUN,
        );
    }
}

/// Every step but the first, which has no weights of a step before to give away, hands over the bytes that `check` says; those
/// of tokens depend on the routing, and are near.
fn sends_what_was_planned(config: &RunConfig, layout: TrainLayout, run: &Path) {
    let plan = RankPlan::of(config, layout).expect("a plan");
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let mut steps = 0;
    for line in text.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let Some(ranks) = line["ranks"].as_array() else {
            continue;
        };
        assert_eq!(ranks.len(), layout.ranks());
        let sum = |key: &str| {
            ranks
                .iter()
                .map(|rank| rank[key].as_u64().expect(key))
                .sum::<u64>()
        };
        if line["step"].as_u64() > Some(1) {
            assert_eq!(u128::from(sum("bytes")), plan.bytes_per_step);
        }
        let tokens = line["batch_tokens"].as_f64().expect("tokens");
        let found = sum("token_bytes") as f64;
        match plan.bytes_per_token {
            None => assert_eq!(found, 0.0),
            Some(each) => {
                let ratio = found / (tokens * each);
                assert!(
                    (0.7..1.4).contains(&ratio),
                    "{found} of {tokens} tokens: {ratio}"
                );
            }
        }
        // All tokens of these batches count. With a balance loss, one in micro-batches is routed before: from the embedding
        // through two layers. Where ranks send each other tokens, one with fewer micro-batches computes a row of padding.
        let sequences = ranks.iter().step_by(layout.tensor);
        let micro_batches = sequences.map(|rank| {
            let rows = rank["sequences"].as_u64().expect("sequences");
            rows.div_ceil(config.train.micro_batch as u64)
        });
        let most = micro_batches.clone().max().expect("a rank");
        let router = config.model.moe.as_ref().map(|moe| &moe.router);
        let routed = match router {
            Some(router) if most > 1 && router.balance_coefficient > 0.0 => {
                4 * layout.tensor * config.model.d_model * (1 + 2 * config.model.layers.len())
            }
            _ => 0,
        };
        let padding: u64 = match layout.expert {
            1 => 0,
            _ => micro_batches.map(|count| most - count).sum(),
        };
        let sums = plan
            .sum_bytes_per_token
            .map_or(0, |each| each + routed as u128);
        let computed = tokens as u128 + u128::from(padding) * config.model.context_length as u128;
        assert_eq!(u128::from(sum("sum_bytes")), sums * computed);
        steps += 1;
    }
    assert_eq!(steps, 12);
}

/// What a run has come to.
const FILES: [&str; 2] = ["model.safetensors", "train_state.safetensors"];
