use std::collections::BTreeMap;

use super::*;
use crate::batch::Sequence;
use crate::config::LayerConfig;
use crate::parameters::{MapParameter, map};
use crate::testing::{ByHand, smallest, text, tiny, with_experts};
use firebox_runtime::device::{default_name, select};
use firebox_runtime::on_every_device;
use firebox_runtime::testing::{assert_close, values};

on_every_device!(
    logits_by_hand,
    a_token_does_not_depend_on_its_neighbours_in_the_batch,
    padding_in_front_changes_no_token_but_its_position,
    the_order_of_experts_changes_nothing,
    the_bias_of_every_router_is_set_and_read,
);

/// The same f32 terms, added in another order.
const ROUNDING: f64 = 5e-6;

fn close<const D: usize>(what: &str, found: Tensor<D>, expected: Tensor<D>) {
    assert_close(what, &values(found), &values(expected), ROUNDING).unwrap();
}

fn ids(rows: &[Vec<u32>], device: &Device) -> Tensor<2, Int> {
    token_tensor(rows.iter().map(Vec::as_slice), device)
}

fn logits_by_hand(device: Device) {
    // Blocks of zeros add nothing, and the last norm makes [3, 4] into [0.6, 0.8].
    let parameters: [(&str, &[f32]); 2] = [
        ("embedding", &[3.0, 4.0, 0.0, 0.0, -4.0, 3.0, 1.0, 1.0]),
        ("head", &[1.0, 0.0, 10.0, 0.0, 0.0, 1.0, 100.0, 0.0]),
    ];
    for tied in [false, true] {
        let mut config = smallest();
        config.tied_embeddings = tied;
        let mut source = ByHand {
            device: &device,
            values: &parameters,
        };
        let Ok(model) = LanguageModel::new(&config, &mut source);
        assert_eq!(model.parameters(), if tied { 46 } else { 54 });
        let trace = model.trace(ids(&[vec![0, 2]], &device), &Placement::causal());
        assert_eq!(trace.output.logits.dims(), [1, 2, 4]);
        let expected = match tied {
            false => [0.6, 0.8, 86.0, 0.0, -0.8, 0.6, 52.0, 0.0],
            true => [5.0, 0.0, 0.0, 1.4, 0.0, 0.0, 5.0, -0.2],
        };
        let found = values(trace.output.logits);
        let far = found
            .iter()
            .zip(expected)
            .find(|(a, b)| (*a - b).abs() > 1e-4);
        assert_eq!(far, None, "{found:?}");
        let hidden: Vec<Vec<f32>> = trace.hidden.into_iter().map(values).collect();
        assert_eq!(hidden.len(), 2);
        assert_eq!(hidden[0], [3.0, 4.0, -4.0, 3.0]);
        assert_close("hidden", &hidden[1], &[0.6, 0.8, -0.8, 0.6], 1e-6).unwrap();
    }
}

fn a_token_does_not_depend_on_its_neighbours_in_the_batch(device: Device) {
    let model = LanguageModel::random(&tiny(), 7, &device);
    let rows = text(4, 11, 37);
    let together = model.forward(ids(&rows, &device)).logits;
    for (number, row) in rows.iter().enumerate() {
        let alone = model
            .forward(ids(std::slice::from_ref(row), &device))
            .logits;
        let of_batch = together.clone().narrow(0, number, 1);
        close(&format!("row {number}"), of_batch, alone);
    }
}

fn padding_in_front_changes_no_token_but_its_position(device: Device) {
    // Rotary positions are relative, so that a text that is moved along is the same text.
    let model = LanguageModel::random(&tiny(), 7, &device);
    let row = text(1, 9, 37).remove(0);
    let alone = model
        .forward(ids(std::slice::from_ref(&row), &device))
        .logits;
    let moved = [vec![5; 4], row].concat();
    let valid: Vec<bool> = (0..13).map(|place| place >= 4).collect();
    let padded = model
        .trace(
            ids(&[moved], &device),
            &Placement::padded(&valid, 13, &device),
        )
        .output
        .logits;
    close("tokens", padded.narrow(1, 4, 9), alone);
}

fn the_order_of_experts_changes_nothing(device: Device) {
    struct Permute<'a> {
        order: &'a [usize],
        /// Where a parameter has the experts.
        axes: BTreeMap<String, usize>,
    }
    impl MapParameter for Permute<'_> {
        fn map<const D: usize>(&mut self, path: &str, value: Tensor<D>) -> Tensor<D> {
            let Some(&dimension) = self.axes.get(path) else {
                return value;
            };
            let parts = self
                .order
                .iter()
                .map(|&expert| value.clone().narrow(dimension, expert, 1));
            Tensor::cat(parts.collect(), dimension)
        }
    }
    let model = LanguageModel::random(&tiny(), 7, &device);
    let tokens = || ids(&text(3, 12, 37), &device);
    let expected = model.forward(tokens()).logits;
    let parameters = LanguageModel::parameter_list(model.config()).into_iter();
    let axes = parameters.filter_map(|parameter| {
        let mut axes = parameter.axes.into_iter();
        Some((parameter.path, axes.position(|axis| axis == Axis::Experts)?))
    });
    let mut permute = Permute {
        order: &[3, 1, 7, 0, 6, 2, 5, 4],
        axes: axes.collect(),
    };
    let permuted = map(model, &mut permute);
    close("logits", permuted.forward(tokens()).logits, expected);
}

fn the_bias_of_every_router_is_set_and_read(device: Device) {
    let mut config = with_experts(3, 1);
    config.layers = vec![LayerConfig::MOE, LayerConfig::dense(5), LayerConfig::MOE];
    let mut model = LanguageModel::random(&config, 7, &device);
    assert!(model.router_bias().iter().all(Vec::is_empty), "never on");
    let biases = [vec![0.0, 9.0, 0.0], vec![0.0, 0.0, 9.0]];
    model.set_router_bias(&biases);
    assert_eq!(model.router_bias(), biases);
    // A probability and 9 are more than any probability.
    let sequence = Sequence::of_window(&text(1, 6, 37)[0], 5, None);
    let routing = model.route(&Batch::new(&[sequence], &device));
    let layers: Vec<usize> = routing.iter().map(|routing| routing.layer).collect();
    assert_eq!(layers, [0, 2]);
    for (routing, expert) in routing.iter().zip([1, 2]) {
        let chosen = routing.plan.chosen().into_data();
        assert!(chosen.iter::<i64>().eq([expert; 5]));
    }
}

#[test]
#[should_panic(expected = "9 tokens exceed the context of 8")]
fn a_sequence_is_no_longer_than_the_context() {
    let device = select(default_name()).unwrap();
    let model = LanguageModel::random(&smallest(), 7, &device);
    let _ = model.forward(ids(&[vec![0; 9]], &device));
}
