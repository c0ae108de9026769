//! Values, losses and gradients against what Hugging Face's transformers gives for the same checkpoint
//! (see `fixtures/README.md`).
//!
//! Tolerances are of `‖a − b‖ / ‖b‖` over a whole tensor. Both sides compute in f32 and add in different
//! orders; a value passes through some hundred roundings of 6e-8, a gradient through twice as many.

use std::fs;
use std::path::{Path, PathBuf};

use burn::module::Module;
use burn::tensor::{Device, Int, Tensor, TensorData};
use firebox_model::batch::{Batch, Sequence};
use firebox_model::checkpoint;
use firebox_model::generate::{Sampler, Sampling, generate};
use firebox_model::language_model::{LanguageModel, token_tensor};
use firebox_model::loss::cross_entropy_sum;
use firebox_model::moe::balance::{BatchLoad, pooled};
use firebox_tests::devices;
use firebox_tests::tensors::{gradients, relative_error};
use safetensors::SafeTensors;

const VALUES: f64 = 5e-6;
const GRADIENTS: f64 = 1e-5;
const CANCELLED: f64 = 1e-3;

struct Golden {
    folder: PathBuf,
    bytes: Vec<u8>,
}

impl Golden {
    fn open(case: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("fixtures")
            .join(case);
        let bytes = fs::read(folder.join("expected.safetensors")).expect("fixture");
        Self { folder, bytes }
    }

    fn raw(&self, name: &str) -> (Vec<usize>, Vec<u8>) {
        let file = SafeTensors::deserialize(&self.bytes).expect("fixture");
        let view = file
            .tensor(name)
            .unwrap_or_else(|_| panic!("fixture has no {name}"));
        (view.shape().to_vec(), view.data().to_vec())
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.raw(name)
            .1
            .chunks_exact(4)
            .map(|word| f32::from_le_bytes(word.try_into().unwrap()))
            .collect()
    }

    fn ids(&self, name: &str) -> Vec<Vec<u32>> {
        let (shape, data) = self.raw(name);
        let ids: Vec<u32> = data
            .chunks_exact(8)
            .map(|word| i64::from_le_bytes(word.try_into().unwrap()) as u32)
            .collect();
        ids.chunks(shape[1]).map(<[u32]>::to_vec).collect()
    }

    fn names(&self) -> Vec<String> {
        let file = SafeTensors::deserialize(&self.bytes).expect("fixture");
        file.names().into_iter().map(str::to_owned).collect()
    }
}

/// The fixture's tokens with shifted targets; the last position of a row, and those that lead into
/// padding, predict nothing that counts.
fn sequences(golden: &Golden) -> Vec<Sequence> {
    let rows = golden
        .ids("input_ids")
        .into_iter()
        .zip(golden.ids("attention_mask"));
    rows.map(|(tokens, mask)| {
        let length = mask.iter().filter(|&&bit| bit == 1).count();
        let mut targets = tokens[1..].to_vec();
        targets.push(0);
        Sequence {
            tokens,
            targets,
            valid: length - 1,
        }
    })
    .collect()
}

#[test]
fn values_and_gradients_are_those_of_transformers() {
    for case in ["mixtral-mqa", "mixtral-gqa"] {
        let golden = Golden::open(case);
        for (name, device) in devices::all() {
            compare(&golden, &format!("{case} on {name}"), &device);
        }
    }
}

fn compare(golden: &Golden, what: &str, device: &Device) {
    let device = device.clone().autodiff();
    let model = checkpoint::load(&golden.folder, &device)
        .expect("fixture")
        .model
        .train();
    let sequences = sequences(golden);
    let batch = Batch::new(&sequences, &device);
    let output = model.forward(batch.tokens);

    // What stands at padding is not part of the comparison.
    let length = sequences[0].tokens.len();
    let real: Vec<bool> = sequences
        .iter()
        .flat_map(|s| (0..length).map(|i| i <= s.valid))
        .collect();
    let unpadded = |values: Vec<f32>| {
        let width = values.len() / real.len();
        let rows = values.chunks(width).zip(&real).filter(|(_, real)| **real);
        rows.flat_map(|(row, _)| row.to_vec()).collect::<Vec<f32>>()
    };
    let check = |kind: &str, found: Vec<f32>, expected: Vec<f32>, tolerance: f64| {
        let error = relative_error(&found, &expected);
        println!("{what}: {kind} {error:.1e}");
        assert!(
            error < tolerance,
            "{what}: {kind} is off by {error:.1e}, allowed {tolerance:.1e}"
        );
    };
    let floats = |data: TensorData| data.iter::<f32>().collect::<Vec<f32>>();
    check(
        "logits",
        unpadded(floats(output.logits.to_data())),
        unpadded(golden.floats("logits")),
        VALUES,
    );
    for (layer, routing) in output.routing.iter().enumerate() {
        let name = format!("router_logits.{layer}");
        let expected = unpadded(golden.floats(&name));
        check(
            &name,
            unpadded(floats(routing.logits.to_data())),
            expected,
            VALUES,
        );
    }

    let logits = output.logits.flatten::<2>(0, 1);
    let loss = cross_entropy_sum(logits, batch.targets, batch.valid.as_ref())
        .div_scalar(batch.counted as f64);
    check(
        "loss.cross_entropy",
        floats(loss.to_data()),
        golden.floats("loss.cross_entropy"),
        VALUES,
    );

    let mut load = BatchLoad::default();
    let tokens = real.iter().filter(|real| **real).count();
    load.add(&output.routing, Some(&real), tokens as u64);
    let ones: Vec<f32> = real.iter().map(|&real| f32::from(u8::from(real))).collect();
    let mask = Tensor::from_data(TensorData::new(ones, [real.len()]), &device);
    let balance = pooled(&output.routing, Some(&mask), &load).expect("a mixture");
    check(
        "loss.load_balancing",
        floats(balance.to_data()),
        golden.floats("loss.load_balancing"),
        VALUES,
    );

    let coefficient = model.config().router.balance_coefficient;
    let total = loss + balance.mul_scalar(coefficient);
    check(
        "loss.total",
        floats(total.to_data()),
        golden.floats("loss.total"),
        VALUES,
    );
    let found = gradients(&model, &total.backward());
    for name in golden
        .names()
        .iter()
        .filter(|name| name.starts_with("grad."))
    {
        // Renormalised top-1 weights are p / p: the loss's gradient for the router cancels to rounding,
        // and what is left beside it, the balance loss's, is a thousand times smaller than what cancelled.
        let cancels = model.config().experts.per_token == 1 && name.ends_with("mlp.gate.weight");
        let tolerance = if cancels { CANCELLED } else { GRADIENTS };
        check(
            name,
            in_their_layout(&model, name, &found),
            golden.floats(name),
            tolerance,
        );
    }
}

/// Our gradients under transformers' in-memory name, where experts are fused and matrices transposed.
fn in_their_layout(
    model: &LanguageModel,
    name: &str,
    gradients: &std::collections::BTreeMap<String, Vec<f32>>,
) -> Vec<f32> {
    let config = model.config();
    let (d_model, d_ff) = (config.d_model, config.experts.d_ff);
    let parts: Vec<&str> = name.split('.').collect();
    let transposed = |values: &[f32], d_in: usize| {
        let d_out = values.len() / d_in;
        (0..values.len())
            .map(|i| values[i % d_in * d_out + i / d_in])
            .collect::<Vec<f32>>()
    };
    match parts[1..] {
        ["model", "embed_tokens", _] => gradients["embedding"].clone(),
        ["model", "norm", _] => gradients["norm.gamma"].clone(),
        ["lm_head", _] => transposed(&gradients["head"], d_model),
        ["model", "layers", layer, ref rest @ ..] => {
            let of = |path: &str| &gradients[&format!("blocks.{layer}.{path}")];
            let attention = |path: &str| {
                let heads = if path == "output" {
                    config.heads * config.head_dim
                } else {
                    d_model
                };
                transposed(of(&format!("attention.{path}")), heads)
            };
            match rest {
                ["input_layernorm", _] => of("attention_norm.gamma").clone(),
                ["post_attention_layernorm", _] => of("feed_forward_norm.gamma").clone(),
                ["self_attn", "q_proj", _] => attention("query"),
                ["self_attn", "k_proj", _] => attention("key"),
                ["self_attn", "v_proj", _] => attention("value"),
                ["self_attn", "o_proj", _] => attention("output"),
                ["mlp", "gate", _] => transposed(of("feed_forward.router.weight"), d_model),
                ["mlp", "experts", "down_proj"] => {
                    let experts = of("feed_forward.experts.down").chunks(d_ff * d_model);
                    experts
                        .flat_map(|expert| transposed(expert, d_ff))
                        .collect()
                }
                ["mlp", "experts", "gate_up_proj"] => {
                    let gates = of("feed_forward.experts.gate").chunks(d_model * d_ff);
                    let ups = of("feed_forward.experts.up").chunks(d_model * d_ff);
                    let pairs = gates.zip(ups);
                    pairs
                        .flat_map(|(gate, up)| {
                            [transposed(gate, d_model), transposed(up, d_model)].concat()
                        })
                        .collect()
                }
                _ => panic!("no parameter for {name}"),
            }
        }
        _ => panic!("no parameter for {name}"),
    }
}

#[test]
fn greedy_tokens_are_those_of_transformers_with_and_without_the_cache() {
    for case in ["mixtral-mqa", "mixtral-gqa"] {
        let golden = Golden::open(case);
        let expected = golden.ids("greedy").remove(0);
        let (prompt, rest) = expected.split_at(12);
        for (name, device) in devices::all() {
            let model = checkpoint::load(&golden.folder, &device)
                .expect("fixture")
                .model;
            let mut cached = Vec::new();
            let mut sampler = Sampler::new(Sampling {
                temperature: 0.0,
                ..Sampling::default()
            });
            generate(&model, prompt, rest.len(), &[], &mut sampler, |id| {
                cached.push(id);
                true
            });
            assert_eq!(cached, rest, "{case} on {name}, with the cache");

            let mut text = prompt.to_vec();
            for _ in rest {
                let tokens: Tensor<2, Int> = token_tensor([text.as_slice()].into_iter(), &device);
                let logits = model.forward(tokens).logits;
                let last = logits
                    .narrow(1, text.len() - 1, 1)
                    .to_data()
                    .iter::<f32>()
                    .collect::<Vec<f32>>();
                text.push(sampler.sample(&last));
            }
            assert_eq!(&text[12..], rest, "{case} on {name}, without the cache");
        }
    }
}
