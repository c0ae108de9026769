//! Values, losses and gradients against what Hugging Face's transformers gives for the same checkpoint, of
//! every family, spelling and type in `fixtures` (see its README.md), on every backend.
//!
//! The network is that of training, its fused attention included. Where padding stands before a token, attention sees
//! ranges, as with documents; six of the checkpoints have such rows.
//!
//! Tolerances are of `‖a − b‖ / ‖b‖` over a whole tensor. Both sides compute in f32 and add in different
//! orders; a value passes through some hundred roundings of 6e-8, a gradient through twice as many. Against the
//! same computed in f64, transformers' own values are off by up to 1.1e-6 and its gradients by up to 5e-6.

use std::collections::BTreeMap;
use std::fs;

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor};
use firebox_checkpoint::Accept;
use firebox_infer::trace::trace;
use firebox_kernels::dtype::WeightDtype;
use firebox_model::generate::generate;
use firebox_model::language_model::token_tensor;
use firebox_model::sampling::{Sampler, Sampling};
use firebox_runtime::device::select;
use firebox_tests::binaries;
use firebox_tests::fixtures;
use firebox_tests::tensors::{Tensors, relative_error};

const VALUES: f64 = 5e-6;
const GRADIENTS: f64 = 2e-5;

/// Both tests of each checkpoint on each device, such as `qwen3_moe::greedy_tokens::wgpu`.
macro_rules! on_every_checkpoint {
    ($($module:ident = $folder:literal),+ $(,)?) => {
        $(mod $module {
            fn values_and_gradients(device: &str) {
                super::values_and_gradients_are_those_of_transformers($folder, device);
            }

            fn greedy_tokens(device: burn::tensor::Device) {
                super::greedy_tokens_are_those_of_transformers($folder, &device);
            }

            firebox_runtime::on_every_device!(values_and_gradients, greedy_tokens);
        })+

        const TESTED: &[&str] = &[$($folder),+];
    };
}

on_every_checkpoint! {
    deepseek_v3 = "deepseek-v3",
    deepseek_v3_direct = "deepseek-v3-direct",
    dots1 = "dots1",
    glm4_moe = "glm4-moe",
    gpt_oss = "gpt-oss",
    gpt_oss_mxfp4 = "gpt-oss-mxfp4",
    granite_moe = "granite-moe",
    llama_f16 = "llama-f16",
    llama3_rope = "llama3-rope",
    mistral = "mistral",
    mixtral_long = "mixtral-long",
    mixtral_mqa = "mixtral-mqa",
    mixtral_tied_fused = "mixtral-tied-fused",
    olmoe_bf16_shards = "olmoe-bf16-shards",
    qwen2 = "qwen2",
    qwen2_moe = "qwen2-moe",
    qwen3 = "qwen3",
    qwen3_moe = "qwen3-moe",
    qwen3_yarn = "qwen3-yarn",
    smollm3 = "smollm3",
}

/// Checkpoints whose tokens have padding before them.
const PADDED_IN_FRONT: [&str; 6] = [
    "deepseek-v3-direct",
    "gpt-oss",
    "mistral",
    "mixtral-tied-fused",
    "qwen3",
    "smollm3",
];

#[test]
fn every_fixture_is_tested() {
    let found: Vec<String> = fixtures::cases()
        .into_iter()
        .map(|(case, _)| case)
        .collect();
    assert_eq!(found, TESTED);
}

fn values_and_gradients_are_those_of_transformers(case: &str, device: &str) {
    let path = fixtures::folder(case);
    let expected = path.join("expected.safetensors");
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("trace.safetensors");
    trace(&path, &[], device, &expected, &output, true).expect("a trace");
    let what = format!("{case} on {device}");
    compare(&what, &Tensors::read(&output), &Tensors::read(&expected));
}

fn compare(what: &str, found: &Tensors, expected: &Tensors) {
    let mut names: Vec<String> = expected.names();
    names.retain(|name| name != "greedy");
    let mut found_names = found.names();
    // Not every family has one.
    found_names.retain(|name| name != "loss.load_balancing" || names.contains(name));
    found_names.sort();
    names.sort();
    assert_eq!(found_names, names, "{what}: names");

    // What stands at padding is not part of the comparison.
    let real: Vec<bool> = expected
        .integers("attention_mask")
        .into_iter()
        .map(|flag| flag == 1)
        .collect();
    let unpadded = |values: Vec<f32>| {
        let rows = values.chunks(values.len() / real.len()).zip(&real);
        let kept = rows.filter(|(_, real)| **real);
        kept.flat_map(|(row, _)| row.to_vec()).collect::<Vec<f32>>()
    };
    let mut largest: BTreeMap<&str, f64> = BTreeMap::new();
    for name in &names {
        let (kind, _) = name.split_once('.').unwrap_or((name, ""));
        if ["input_ids", "attention_mask"].contains(&kind) {
            assert_eq!(
                found.integers(name),
                expected.integers(name),
                "{what}: {name}"
            );
            continue;
        }
        assert_eq!(found.shape(name), expected.shape(name), "{what}: {name}");
        let values = |tensors: &Tensors| match kind {
            "grad" | "loss" => tensors.floats(name),
            _ => unpadded(tensors.floats(name)),
        };
        let error = relative_error(&values(found), &values(expected));
        let tolerance = if kind == "grad" { GRADIENTS } else { VALUES };
        assert!(
            error < tolerance,
            "{what}: {name} is off by {error:.1e}, allowed {tolerance:.1e}"
        );
        let worst = largest.entry(kind).or_default();
        *worst = worst.max(error);
    }
    let errors: Vec<String> = largest
        .iter()
        .map(|(kind, error)| format!("{kind} {error:.1e}"))
        .collect();
    println!("{what}: {}", errors.join(", "));
}

/// With the cache and without.
fn greedy_tokens_are_those_of_transformers(case: &str, device: &Device) {
    let path = fixtures::folder(case);
    let expected = Tensors::read(&path.join("expected.safetensors")).integers("greedy");
    let expected: Vec<u32> = expected.into_iter().map(|id| id as u32).collect();
    let (prompt, rest) = expected.split_at(expected.len() - 16);
    let model = firebox_checkpoint::load(&path, Accept::Nothing, device, WeightDtype::F32)
        .expect("fixture")
        .model;
    let mut cached = Vec::new();
    let greedy = Sampling::greedy();
    generate(&model, prompt, rest.len(), &[], greedy, |id| {
        cached.push(id);
        true
    });
    assert_eq!(cached, rest, "with the cache");

    let mut text = prompt.to_vec();
    for _ in rest {
        let tokens: Tensor<2, Int> = token_tensor([text.as_slice()].into_iter(), device);
        let logits = model.forward(tokens).logits;
        let last = logits
            .narrow(1, text.len() - 1, 1)
            .to_data()
            .iter::<f32>()
            .collect::<Vec<f32>>();
        text.push(Sampler::new(greedy).sample(&last, &[], &[]));
    }
    assert_eq!(&text[prompt.len()..], rest, "without the cache");
}

/// Both attentions add in orders of their own, so that the bits tell which one computed a trace.
#[test]
fn a_trace_takes_the_attention_of_training() {
    let device = select("flex").expect("flex").autodiff();
    let folder = tempfile::tempdir().expect("a folder");
    let output = folder.path().join("trace.safetensors");
    for (case, path) in fixtures::cases() {
        let input = path.join("expected.safetensors");
        trace(&path, &[], "flex", &input, &output, true).expect("a trace");
        let bits = |values: Vec<f32>| values.into_iter().map(f32::to_bits).collect::<Vec<u32>>();
        let found = bits(Tensors::read(&output).floats("logits"));

        let expected = Tensors::read(&input);
        let shape = expected.shape("input_ids");
        let ids = expected
            .integers("input_ids")
            .into_iter()
            .map(|id| id as u32);
        let ids: Vec<u32> = ids.collect();
        let model = firebox_checkpoint::load(&path, Accept::Nothing, &device, WeightDtype::F32)
            .expect("fixture")
            .model
            .train();
        let tokens = token_tensor(ids.chunks(shape[1]), &device);
        let logits = |tensor: Tensor<3>| bits(tensor.into_data().iter::<f32>().collect());
        let of_training = logits(model.forward(tokens).logits);
        let front = PADDED_IN_FRONT.contains(&case.as_str());
        assert_eq!(found == of_training, !front, "{case}");
    }
}

#[test]
fn the_binary_writes_the_same_trace() {
    let path = fixtures::folder("qwen3-moe");
    let folder = tempfile::tempdir().expect("a folder");
    let (by_library, by_binary) = (folder.path().join("library"), folder.path().join("binary"));
    let input = path.join("expected.safetensors");
    trace(&path, &[], "flex", &input, &by_library, false).expect("a trace");
    let output = binaries::infer(&["trace", path.to_str().unwrap(), "--device", "flex"])
        .arg("--input")
        .arg(&input)
        .arg("--output")
        .arg(&by_binary)
        .output()
        .expect("the binary runs");
    assert!(output.status.success(), "{output:?}");
    assert!(output.stdout.is_empty(), "standard output is for data");
    assert_eq!(fs::read(by_library).unwrap(), fs::read(by_binary).unwrap());
}
