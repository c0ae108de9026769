//! A run is the same run on every device: it starts from the same bits, and its losses are the same but for rounding.

use std::fs;
use std::path::Path;

use burn::tensor::Device;
use firebox_model::language_model::LanguageModel;
use firebox_runtime::control::Control;
use firebox_runtime::on_every_device;
use firebox_tests::models::{bits, tiny};
use firebox_tests::runs::TestRun;
use firebox_train::ranks::Team;
use firebox_train::trainer::{self, Resume};
use serde_json::Value;
use sha2::{Digest, Sha256};

on_every_device!(
    initial_weights_have_the_same_bits,
    the_first_losses_are_known
);

/// Of the weights of [`tiny`] with seed 7, each parameter's path and little-endian bits in the order of paths.
const WEIGHTS: &str = "512168bf7a165325cc94003dadf83b025fe6807a2e0fb4d5aadceafa7b161bd2";

fn initial_weights_have_the_same_bits(device: Device) {
    let mut hash = Sha256::new();
    for (path, bits) in bits(&LanguageModel::random(&tiny(), 7, &device)) {
        hash.update(path);
        bits.into_iter()
            .for_each(|bits| hash.update(bits.to_le_bytes()));
    }
    let hash: String = hash
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    assert_eq!(hash, WEIGHTS);
}

/// The training losses of the first steps of the run of `tests/src/runs.rs` with seed 2, in nats per token, as `flex`
/// computes them. What changes its text, tokenizer, order of data, initial weights or arithmetic changes these.
const LOSSES: [f64; 6] = [
    5.6648979, 5.6956458, 5.6156921, 5.3286576, 5.2457327, 5.1821280,
];

/// Largest difference of a device's losses over the loss. All devices add the same f32 terms in orders of their own,
/// 6e-8 of a term each; a step of AdamW divides by the size of the gradient, so that the smallest ones, mostly rounding,
/// move their weights as far as any. Measured: 9.2e-8 on ndarray. Seeds differ in this: with seed 0, weights perturbed by
/// a relative 1e-6 move the sixth loss by 1.9e-5, with which devices part by 3.6e-6.
const PARTING: f64 = 1e-6;

fn the_first_losses_are_known(device: &str) {
    let test = TestRun::new();
    let config = test.config(&["train.steps=6", "train.seed=2"]);
    let options = test.options("run", device, Resume::Never);
    trainer::run(&config, &options, &Team::default(), &Control::default()).expect("a run");
    let found = losses(&options.out);
    println!("{found:?}");
    assert_eq!(found.len(), LOSSES.len());
    for (step, (found, expected)) in found.iter().zip(LOSSES).enumerate() {
        let difference = (found - expected).abs() / expected;
        println!("step {}: {found:.8}, {difference:.1e} apart", step + 1);
        assert!(
            difference < PARTING,
            "step {}: {found} is not {expected}",
            step + 1
        );
    }
}

/// The training loss of each step of a run.
fn losses(run: &Path) -> Vec<f64> {
    let text = fs::read_to_string(run.join("metrics.jsonl")).expect("metrics");
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let steps = lines.filter(|line| line["kind"] == "train");
    steps
        .map(|line| line["loss"].as_f64().expect("a loss"))
        .collect()
}
