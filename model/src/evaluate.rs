//! The quality of a model on text: loss in nats and bits per byte, and router health.

use serde::{Deserialize, Deserializer, Serialize};

use crate::batch::Sequence;
use crate::moe::stats::{HealthSums, LayerHealth};
use crate::network::{BatchSums, Batches};

/// Default number of sequences per batch: the same in training and evaluation, so that sums are taken in the same
/// order.
pub const ROWS: usize = 16;

/// The quality of a model on some text. The loss contains no auxiliary term.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Number of predicted tokens.
    pub tokens: u64,
    /// Number of UTF-8 bytes of the predicted tokens.
    pub bytes: u64,
    /// Mean cross-entropy in nats per token.
    pub nats_per_token: f64,
    /// `exp(nats_per_token)`, infinite from about 710 on.
    #[serde(deserialize_with = "infinite_if_null")]
    pub perplexity: f64,
    /// `nats / ln 2 / bytes`: the bits per byte of an ideal compressor that uses this model. Unlike the loss per
    /// token, it can be compared between tokenizers.
    pub bits_per_byte: f64,
    /// Router health of each MoE layer; empty for a dense model.
    pub layers: Vec<LayerHealth>,
}

/// A number, in whose place JSON has null where it is infinite.
fn infinite_if_null<'de, D: Deserializer<'de>>(source: D) -> Result<f64, D::Error> {
    let number = Option::<f64>::deserialize(source)?;
    Ok(number.unwrap_or(f64::INFINITY))
}

/// Evaluates on sequences, `rows` of them at a time; `progress` is called with the number of tokens done.
///
/// Sums are accumulated in f64 in the order of the sequences, so that the same sequences and `rows` give bit-identical
/// results for every caller.
///
/// # Panics
///
/// When sequences differ in length or exceed the context.
pub fn evaluate(
    network: &mut (impl Batches + ?Sized),
    sequences: impl Iterator<Item = Sequence>,
    bytes: u64,
    rows: usize,
    progress: impl FnMut(u64),
) -> Evaluation {
    let parts = std::iter::once((sequences, bytes));
    evaluate_parts(network, parts, rows, progress).0
}

/// The same for the parts of a text, such as its sources: evaluates the whole and each part. A part is its sequences,
/// and the bytes of their targets. No batch contains sequences of two parts.
///
/// # Panics
///
/// When sequences differ in length or exceed the context.
pub fn evaluate_parts<S: Iterator<Item = Sequence>>(
    network: &mut (impl Batches + ?Sized),
    parts: impl Iterator<Item = (S, u64)>,
    rows: usize,
    mut progress: impl FnMut(u64),
) -> (Evaluation, Vec<Evaluation>) {
    // Batches that are under way.
    let most = network.stages();
    let mut whole = Sums::default();
    let mut evaluations = Vec::new();
    for (sequences, bytes) in parts {
        let mut part = Sums {
            bytes,
            ..Sums::default()
        };
        whole.bytes += bytes;
        let mut sequences = sequences.peekable();
        let mut under_way = 0;
        loop {
            while under_way < most && sequences.peek().is_some() {
                let batch: Vec<Sequence> = sequences.by_ref().take(rows.max(1)).collect();
                network.submit_batch(&batch);
                under_way += 1;
            }
            if under_way == 0 {
                break;
            }
            let batch = network.sums();
            under_way -= 1;
            for sums in [&mut whole, &mut part] {
                sums.add(&batch);
            }
            progress(whole.tokens);
        }
        evaluations.push(part.evaluation());
    }
    (whole.evaluation(), evaluations)
}

/// What an [`Evaluation`] is computed from.
#[derive(Default)]
struct Sums {
    nats: f64,
    tokens: u64,
    bytes: u64,
    health: HealthSums,
}

impl Sums {
    fn add(&mut self, batch: &BatchSums) {
        self.nats += f64::from(batch.nats);
        self.tokens += batch.tokens;
        self.health.add(&batch.layers, batch.tokens, &batch.health);
    }

    fn evaluation(&self) -> Evaluation {
        let nats_per_token = self.nats / self.tokens.max(1) as f64;
        Evaluation {
            tokens: self.tokens,
            bytes: self.bytes,
            nats_per_token,
            perplexity: nats_per_token.exp(),
            bits_per_byte: self.nats / std::f64::consts::LN_2 / self.bytes.max(1) as f64,
            layers: self.health.health(),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::module::Module;
    use burn::tensor::Device;

    use super::*;
    use crate::language_model::LanguageModel;
    use crate::network::Local;
    use crate::testing::{ByHand, moe, smallest, text, tiny};
    use firebox_runtime::on_every_device;

    #[test]
    fn a_perplexity_without_bounds_is_read_as_it_was_written() {
        let sums = Sums {
            nats: 1e6,
            tokens: 10,
            bytes: 30,
            ..Sums::default()
        };
        let evaluation = sums.evaluation();
        assert!(evaluation.perplexity.is_infinite());
        let text = serde_json::to_string(&evaluation).unwrap();
        assert_eq!(
            serde_json::from_str::<Evaluation>(&text).unwrap(),
            evaluation
        );
    }

    on_every_device!(
        a_model_without_preferences,
        the_whole_is_the_sum_of_its_parts,
        evaluation_is_repeatable_and_leaves_the_model_as_it_was,
    );

    fn a_model_without_preferences(device: Device) {
        let mut source = ByHand {
            device: &device,
            values: &[],
        };
        let Ok(model) = LanguageModel::new(&smallest(), &mut source);
        let windows = [[0, 1, 2, 3].as_slice(), &[3, 2], &[1, 1, 1]];
        let sequences = windows.map(|tokens| Sequence::of_window(tokens, 3, None));
        let mut heard = Vec::new();
        let found = evaluate(
            &mut Local::new(&model),
            sequences.into_iter(),
            3,
            2,
            |tokens| {
                heard.push(tokens);
            },
        );
        // 3 + 1 and 2 tokens of two bits each, which stand for three bytes.
        assert_eq!(heard, [4, 6]);
        assert_eq!((found.tokens, found.bytes), (6, 3));
        let near = |found: f64, expected: f64| (found / expected - 1.0).abs() < 1e-6;
        assert!(near(found.nats_per_token, 4f64.ln()), "{found:?}");
        assert!(near(found.perplexity, 4.0), "{found:?}");
        assert!(near(found.bits_per_byte, 4.0), "{found:?}");
        // Equal scores go to the first of two experts.
        let [layer] = found.layers.as_slice() else {
            panic!("{found:?}");
        };
        assert_eq!(layer.load, [1.0, 0.0]);
        assert!(near(layer.entropy, 2f64.ln()), "{layer:?}");
    }

    fn the_whole_is_the_sum_of_its_parts(device: Device) {
        let config = tiny();
        let model = LanguageModel::random(&config, 7, &device);
        let windows = text(5, 13, config.vocab_size);
        let sequences = |windows: &[Vec<u32>]| -> Vec<Sequence> {
            let windows = windows.iter();
            windows
                .map(|tokens| Sequence::of_window(tokens, 12, None))
                .collect()
        };
        let parts = [(&windows[..2], 20), (&windows[2..], 30), (&[], 0)];
        let with_bytes = parts
            .iter()
            .map(|&(windows, bytes)| (sequences(windows).into_iter(), bytes));
        let (whole, found) = evaluate_parts(&mut Local::new(&model), with_bytes, 2, |_| {});
        for (&(windows, bytes), found) in parts.iter().zip(&found) {
            let alone = evaluate(
                &mut Local::new(&model),
                sequences(windows).into_iter(),
                bytes,
                2,
                |_| {},
            );
            assert_eq!(found, &alone);
        }
        assert_eq!((whole.tokens, whole.bytes), (60, 50));
        let nats: f64 = found
            .iter()
            .map(|part| part.nats_per_token * part.tokens as f64)
            .sum();
        assert!((whole.nats_per_token - nats / 60.0).abs() < 1e-12);
        let load = |evaluation: &Evaluation| evaluation.layers[0].load[0];
        let mean = (24.0 * load(&found[0]) + 36.0 * load(&found[1])) / 60.0;
        assert!((load(&whole) - mean).abs() < 1e-12);
        // A single part is evaluated as the text itself.
        let once = std::iter::once((sequences(&windows).into_iter(), 50));
        let (one, part) = evaluate_parts(&mut Local::new(&model), once, 2, |_| {});
        assert_eq!((part.len(), &part[0]), (1, &one));
        assert_eq!(
            one,
            evaluate(
                &mut Local::new(&model),
                sequences(&windows).into_iter(),
                50,
                2,
                |_| {}
            )
        );
    }

    fn evaluation_is_repeatable_and_leaves_the_model_as_it_was(device: Device) {
        let mut config = tiny();
        moe(&mut config).router.bias_update_rate = 0.01;
        let mut model = LanguageModel::random(&config, 7, &device.autodiff()).train();
        model.set_router_bias(&vec![vec![0.1, 0.0, -0.1, 0.0, 0.0, 0.0, 0.0, 0.0]; 2]);
        let mut windows = text(5, 13, config.vocab_size);
        windows[4].truncate(7);
        let sequences = windows
            .iter()
            .map(|tokens| Sequence::of_window(tokens, 12, None));
        let evaluate = |rows| {
            evaluate(
                &mut Local::new(&model.valid()),
                sequences.clone(),
                50,
                rows,
                |_| {},
            )
        };
        let first = evaluate(2);
        assert_eq!(first, evaluate(2));
        assert_eq!(first.tokens, 54);
        let all_at_once = evaluate(5);
        assert!((first.nats_per_token - all_at_once.nats_per_token).abs() < 1e-6);
        assert_eq!(model.router_bias()[1][0], 0.1);
    }
}
