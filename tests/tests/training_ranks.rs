//! Many ranks train a model as one does: gradients and whole runs, with any number of ranks after a resume.
//!
//! Ranks are threads here, which give the bits of processes under MPI (`train/tests/mpi.rs`).

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use burn::module::Module;
use burn::tensor::Device;
use firebox_comm::{Comm, CommError, Options, threads};
use firebox_model::batch::Sequence;
use firebox_model::config::{BalanceKind, ModelConfig};
use firebox_model::testing::moe;
use firebox_runtime::control::Control;
use firebox_runtime::on_every_device;
use firebox_tests::fixtures;
use firebox_tests::models::{model, sequences, tiny};
use firebox_tests::runs::{TestRun, copy_at};
use firebox_tests::tensors::relative_error;
use firebox_train::config::Muon;
use firebox_train::gradient::{forward_backward, gradient_of};
use firebox_train::learned::Learned;
use firebox_train::optimizer::Optimizer;
use firebox_train::ranks::{Team, TrainLayout, launch};
use firebox_train::trainer::{self, Resume};

on_every_device!(the_gradient_does_not_depend_on_the_number_of_ranks);

/// The same f32 terms, added in another order.
const ROUNDING: f64 = 5e-6;

/// A number of ranks that divide the batch.
fn data(ranks: usize) -> TrainLayout {
    TrainLayout {
        data: ranks,
        expert: 1,
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
}

fn on_ranks(
    layout: TrainLayout,
    muon: Muon,
    config: &ModelConfig,
    rows: &[Sequence],
    micro_batch: usize,
    device: &Device,
) -> Whole {
    let (config, rows, device) = (config.clone(), rows.to_vec(), device.clone());
    let body = move |world: Arc<dyn Comm>| {
        let team = Team::new(world, layout);
        let optimizer = Optimizer::new(&config, muon, Learned::Everything, &team);
        let own = &rows[team.share(rows.len())];
        let result = gradient_of(
            &optimizer,
            &model(&config, &device).train(),
            own,
            micro_batch,
            &device,
        );
        let gradients = result.gradients.by_path().iter();
        let gradients = gradients.map(|(path, gradient)| {
            let own = optimizer
                .ownership()
                .own(path)
                .expect("one of several ranks");
            let values = gradient.to_data().iter::<f32>().collect::<Vec<f32>>();
            assert_eq!(values.len(), own.len(), "{path}");
            (path.clone(), own.start, values)
        });
        let gradients: Vec<(String, usize, Vec<f32>)> = gradients.collect();
        let health = result.health.health().into_iter();
        let whole = Whole {
            loss: result.loss,
            total_loss: result.total_loss,
            norm: result.gradient_norm,
            tokens: result.tokens,
            load: health.map(|layer| layer.load).collect(),
            biases: result.scores.balancing_biases(&[]),
            gradients: BTreeMap::new(),
        };
        Ok::<_, CommError>((whole, gradients))
    };
    let ended = threads::run(layout.ranks(), &Options::default(), body).expect("no rank fails");
    let mut ranks = ended.into_iter();
    let (mut whole, mut parts) = ranks.next().expect("a first rank");
    for (other, gradients) in ranks {
        assert_eq!(
            (other.loss, other.norm, &other.biases),
            (whole.loss, whole.norm, &whole.biases),
            "every rank knows the same"
        );
        parts.extend(gradients);
    }
    parts.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
    for (path, start, values) in parts {
        let of_path = whole.gradients.entry(path).or_default();
        assert_eq!(of_path.len(), start, "no gap and no overlap");
        of_path.extend(values);
    }
    whole
}

fn the_gradient_does_not_depend_on_the_number_of_ranks(device: Device) {
    let device = device.autodiff();
    let mut pooled = tiny();
    moe(&mut pooled).router.balance = BalanceKind::Pooled;
    let mut quantile = tiny();
    let router = &mut moe(&mut quantile).router;
    (router.balance, router.balance_coefficient) = (BalanceKind::Quantile, 0.0);
    for config in [tiny(), pooled, quantile] {
        // Ranks with much padding, and shares of different size.
        let rows = sequences(&config, 7, 12, &[0, 7, 0, 3, 11, 2, 0]);
        let alone = forward_backward(&model(&config, &device).train(), &rows, 7, &device);
        let biases = alone.scores.balancing_biases(&[]).concat();
        for (ranks, micro_batch, muon) in
            [(2, 7, Muon::None), (3, 2, Muon::Dense), (4, 1, Muon::All)]
        {
            let what = format!("{ranks} ranks, {micro_batch} at a time");
            let whole = on_ranks(data(ranks), muon, &config, &rows, micro_batch, &device);
            let near = |name: &str, found: f64, expected: f64| {
                let error = (found / expected - 1.0).abs();
                assert!(error < ROUNDING, "{what}: {name} {found}, {expected}");
            };
            near("loss", whole.loss, alone.loss);
            near("total loss", whole.total_loss, alone.total_loss);
            near("norm", whole.norm, alone.gradient_norm);
            assert_eq!(whole.tokens, alone.tokens);
            let load: Vec<Vec<f64>> = alone
                .health
                .health()
                .into_iter()
                .map(|of| of.load)
                .collect();
            assert_eq!(whole.load, load, "{what}");
            if !biases.is_empty() {
                let error = relative_error(&whole.biases.concat(), &biases);
                assert!(error < ROUNDING, "{what}: biases off by {error:.1e}");
            }
            assert_eq!(whole.gradients.len(), alone.gradients.by_path().len());
            for (path, expected) in alone.gradients.by_path() {
                let expected: Vec<f32> = expected.to_data().iter::<f32>().collect();
                let error = relative_error(&whole.gradients[path], &expected);
                assert!(error < ROUNDING, "{what}: {path} off by {error:.1e}");
            }
        }
    }
}

/// Runs, or goes on, with so many ranks.
fn train(test: &TestRun, layout: TrainLayout, out: &str, set: &[&str], resume: Resume) {
    let (config, options) = (test.config(set), test.options(out, "flex", resume));
    let outcome = launch::run(layout, Some(layout.ranks()), move |team| {
        trainer::run(&config, &options, team, &Control::default())
    });
    assert!(outcome.expect("a run").is_some());
}

/// Losses of training and validation, by step.
fn losses(run: &Path) -> Vec<(u64, String, f64)> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let lines = text.lines().filter_map(|line| {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let kind = line["kind"].as_str()?.to_owned();
        let loss = line["loss"].as_f64().or(line["nats_per_token"].as_f64())?;
        Some((line["step"].as_u64()?, kind, loss))
    });
    lines.collect()
}

/// Rounding grows from step to step: twelve steps take losses 3e-6 apart.
const OF_A_RUN: f64 = 2e-5;

fn same_losses(what: &str, found: &Path, expected: &Path) {
    let (found, expected) = (losses(found), losses(expected));
    assert_eq!(found.len(), expected.len(), "{what}");
    for ((step, kind, loss), (same_step, same_kind, other)) in found.iter().zip(&expected) {
        assert_eq!((step, kind), (same_step, same_kind), "{what}");
        let error = (loss / other - 1.0).abs();
        assert!(
            error < OF_A_RUN,
            "{what}: {kind} of step {step}: {loss}, {other}"
        );
    }
}

/// Of three sequences at first, a rank's share of which is one.
const BATCHES: [&str; 1] = ["schedule.batch_tokens={ start = 96, end = 224, ramp_steps = 8 }"];

const RECIPES: [&[&str]; 2] = [
    &[],
    &[
        "model.router.balance=quantile",
        "model.router.bias_update_rate=0",
        "optimizer.muon=all",
        "train.zero_outputs=true",
    ],
];

#[test]
fn a_run_has_the_losses_of_one_rank_and_resumes_with_any_number() {
    let test = TestRun::new();
    for (number, recipe) in RECIPES.iter().enumerate() {
        let name = |of: &str| format!("{of}-{number}");
        let path = |of: &str| test.path(&name(of));
        let recipe = [&BATCHES, *recipe].concat();
        let recipe = recipe.as_slice();
        train(&test, data(1), &name("alone"), recipe, Resume::Never);
        train(&test, data(3), &name("three"), recipe, Resume::Never);
        same_losses("three ranks", &path("three"), &path("alone"));
        // Everything that a checkpoint has, in the same files.
        let names = |run: &str| -> Vec<String> {
            let files = fixtures::files(&path(run).join("checkpoints/step-0000012"));
            files.into_keys().collect()
        };
        assert_eq!(names("three"), names("alone"));

        // On the same number of ranks, to the last byte.
        copy_at(&path("three"), &path("again"), 6);
        train(&test, data(3), &name("again"), recipe, Resume::Required);
        for file in ["model.safetensors", "train_state.safetensors"] {
            let bytes = |run: &str| {
                let file = path(run).join("checkpoints/step-0000012").join(file);
                fs::read(file).expect("a file of a checkpoint")
            };
            assert!(bytes("again") == bytes("three"), "{file}");
        }

        // From three to one to two.
        copy_at(&path("three"), &path("fewer"), 4);
        train(&test, data(1), &name("fewer"), recipe, Resume::Required);
        copy_at(&path("fewer"), &path("more"), 8);
        train(&test, data(2), &name("more"), recipe, Resume::Required);
        same_losses("from three to one to two", &path("more"), &path("alone"));
    }
}
