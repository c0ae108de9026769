//! What must not matter to training, does not: the cut of a batch into micro-batches, and what a document is packed with.
//! What must not matter to the network
//! (neighbours in a batch, the order of experts, the cache) is tested beside it, in `firebox-model`.
//!
//! Tolerances are of `‖a − b‖ / ‖b‖`: the same f32 terms are added in another order.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use firebox_model::batch::Sequence;
use firebox_model::config::{BalanceKind, ModelConfig, Scores};
use firebox_model::moe::stats::LayerHealth;
use firebox_model::testing::{clamped, moe, windowed, without_positions};
use firebox_runtime::on_every_device;
use firebox_tests::models::{model, sequences, tiny};
use firebox_tests::tensors::relative_error;
use firebox_train::gradient::{BatchResult, forward_backward};

on_every_device!(
    the_gradient_does_not_depend_on_the_cut_into_micro_batches,
    a_document_teaches_the_same_whatever_it_is_packed_with,
    quantile_balancing_does_not_depend_on_cut_and_padding,
    the_auxiliary_losses_are_in_the_gradient_and_not_in_the_loss,
);

const ROUNDING: f64 = 5e-6;

fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.to_data().iter::<f32>().collect()
}

fn close<const D: usize>(what: &str, found: &Tensor<D>, expected: &Tensor<D>) {
    let error = relative_error(&values(found), &values(expected));
    assert!(error < ROUNDING, "{what}: off by {error:.1e}");
}

fn the_gradient_does_not_depend_on_the_cut_into_micro_batches(device: Device) {
    let device = device.autodiff();
    let mut pooled = tiny();
    moe(&mut pooled).router.balance = BalanceKind::Pooled;
    for config in [tiny(), pooled] {
        let model = model(&config, &device).train();
        let sequences = sequences(&config, 5, 12, &[0, 7, 0, 3, 11]);
        let whole = forward_backward(&model, &sequences, 5, &device);
        for micro_batch in [1, 2, 3] {
            let cut = forward_backward(&model, &sequences, micro_batch, &device);
            same_result(&format!("{micro_batch} at a time"), &cut, &whole);
        }
    }
}

fn quantile_balancing_does_not_depend_on_cut_and_padding(device: Device) {
    let device = device.autodiff();
    for scores in [Scores::Softmax, Scores::Sigmoid] {
        let mut config = tiny();
        let router = &mut moe(&mut config).router;
        (router.balance, router.balance_coefficient) = (BalanceKind::Quantile, 0.0);
        router.scores = scores;
        let mut model = model(&config, &device).train();
        let before: Vec<Vec<f32>> = (0..2)
            .map(|layer| (0..8).map(|e| ((e + layer) as f32).sin() * 0.1).collect())
            .collect();
        model.set_router_bias(&before);
        let biases = |sequences: &[Sequence], micro_batch| {
            let result = forward_backward(&model, sequences, micro_batch, &device);
            result.scores.balancing_biases(&before).concat()
        };
        let texts = sequences(&config, 5, 12, &[0, 7, 0, 3, 11]);
        let whole = biases(&texts, 5);
        assert!(relative_error(&whole, &before.concat()) > 0.1);
        for micro_batch in [1, 2, 3] {
            let error = relative_error(&biases(&texts, micro_batch), &whole);
            assert!(
                error < ROUNDING,
                "{micro_batch} at a time: off by {error:.1e}"
            );
        }
        // Without what does not count.
        let cut = texts.iter().map(|text| Sequence {
            tokens: text.tokens[..text.valid].to_vec(),
            targets: text.targets[..text.valid].to_vec(),
            ..text.clone()
        });
        let cut: Vec<Sequence> = cut.collect();
        let error = relative_error(&biases(&cut, 1), &whole);
        assert!(error < ROUNDING, "without padding: off by {error:.1e}");
    }
}

fn a_document_teaches_the_same_whatever_it_is_packed_with(device: Device) {
    const END: u32 = 0;
    let device = device.autodiff();
    for (what, config) in [
        ("full attention", tiny()),
        ("a window", windowed()),
        ("clamped experts", clamped()),
        ("no positions", without_positions()),
    ] {
        packed_as_alone(what, &config, END, &device);
    }
}

fn packed_as_alone(what: &str, config: &ModelConfig, end: u32, device: &Device) {
    let model = model(config, device).train();
    // Documents of several lengths, one of a single token, and the next one's first token as the last target.
    let texts = sequences(config, 4, 8, &[0, 3, 7, 2]);
    let documents: Vec<Vec<u32>> = texts
        .iter()
        .map(|text| {
            let tokens = text.tokens[..text.valid].iter().map(|token| token.max(&1));
            tokens.copied().chain([end]).collect()
        })
        .collect();
    let next = |number: usize| documents[(number + 1) % documents.len()][0];
    let context = documents.iter().map(Vec::len).sum();
    let window = |tokens: &[u32]| Sequence::of_window(tokens, context, Some(end));
    let alone: Vec<Sequence> = documents
        .iter()
        .enumerate()
        .map(|(number, document)| window(&[&document[..], &[next(number)]].concat()))
        .collect();
    let packed = [documents.concat(), vec![next(documents.len() - 1)]].concat();
    let alone = forward_backward(&model, &alone, 4, device);
    let together = forward_backward(&model, &[window(&packed)], 1, device);
    same_result(what, &together, &alone);
    let sees_all = Sequence::of_window(&packed, context, None);
    let sees_all = forward_backward(&model, &[sees_all], 1, device);
    assert!(
        (sees_all.loss - alone.loss).abs() > 1e-4,
        "{what}: the mask does nothing"
    );
}

fn same_result(what: &str, cut: &BatchResult, whole: &BatchResult) {
    for (kind, found, expected) in [
        ("loss", cut.loss, whole.loss),
        ("total loss", cut.total_loss, whole.total_loss),
    ] {
        assert!(
            (found - expected).abs() < 1e-6 * expected.abs(),
            "{what}: {kind} {found} against {expected}"
        );
    }
    assert!(
        cut.health
            .tokens_per_expert()
            .eq(whole.health.tokens_per_expert()),
        "{what}: tokens per expert"
    );
    let (cut, whole) = (cut.gradients.by_path(), whole.gradients.by_path());
    assert_eq!(
        cut.keys().collect::<Vec<_>>(),
        whole.keys().collect::<Vec<_>>()
    );
    for (path, gradient) in whole {
        close(&format!("{what}: gradient of {path}"), &cut[path], gradient);
    }
}

fn the_auxiliary_losses_are_in_the_gradient_and_not_in_the_loss(device: Device) {
    let device = device.autodiff();
    let with = tiny();
    let mut without = tiny();
    let router = &mut moe(&mut without).router;
    (router.balance_coefficient, router.z_coefficient) = (0.0, 0.0);
    let sequences = sequences(&with, 2, 12, &[]);
    let [with, without] = [with, without]
        .map(|config| forward_backward(&model(&config, &device).train(), &sequences, 2, &device));
    assert_eq!(with.loss, without.loss);
    assert_eq!(without.total_loss, without.loss);
    let health = with.health.health();
    let mean =
        |of: fn(&LayerHealth) -> f64| health.iter().map(of).sum::<f64>() / health.len() as f64;
    let expected = with.loss + 0.05 * mean(|layer| layer.balance) + 0.01 * mean(|layer| layer.z);
    assert!(
        (with.total_loss - expected).abs() < 1e-5,
        "{} against {expected}",
        with.total_loss
    );
    let router = "blocks.0.feed_forward.router.weight";
    let [with, without] =
        [&with, &without].map(|result| values(&result.gradients.by_path()[router]));
    assert!(
        relative_error(&with, &without) > 1e-3,
        "the router's gradient lacks the auxiliary part"
    );
}
