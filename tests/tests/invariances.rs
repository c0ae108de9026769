//! What must not matter, does not: the cut into micro-batches, neighbours in a batch, the order of
//! experts, the cache. One test a backend of this build.
//!
//! Tolerances are of `‖a − b‖ / ‖b‖`: the same f32 terms are added in another order.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use firebox_model::batch::{Batch, Sequence};
use firebox_model::cache::KeyValueCache;
use firebox_model::config::{FeedForwardKind, ModelConfig};
use firebox_model::evaluate::evaluate;
use firebox_model::feed_forward::{DenseFeedForward, FeedForward};
use firebox_model::language_model::{LanguageModel, token_tensor};
use firebox_model::moe::balance::{TokensPerExpert, per_layer, pooled};
use firebox_model::moe::{MixtureOfExperts, Routing};
use firebox_model::parameters::{MapParameter, RandomParameters, map};
use firebox_model::parts::{LayerPart, Observer, Part, forward_observed, layer_parts};
use firebox_runtime::on_every_device;
use firebox_tests::models::{model, sequences, tiny, with_experts};
use firebox_tests::tensors::relative_error;
use firebox_train::gradient::{BatchResult, forward_backward};

on_every_device!(
    the_gradient_does_not_depend_on_the_cut_into_micro_batches,
    the_auxiliary_losses_are_in_the_gradient_and_not_in_the_loss,
    a_token_does_not_depend_on_its_neighbours_in_the_batch,
    decoding_with_the_cache_equals_one_forward_pass,
    the_parts_one_by_one_are_the_whole,
    every_k_is_the_weighted_sum_of_the_chosen_experts_and_k_equal_e_the_dense_sum,
    one_expert_is_the_dense_feed_forward_with_the_same_weights,
    the_order_of_experts_changes_nothing,
    a_mixture_whose_router_is_indifferent_is_balanced_at_one_for_every_k,
    evaluation_is_repeatable_and_leaves_the_model_as_it_was,
);

const ROUNDING: f64 = 5e-6;

fn values<const D: usize>(tensor: &Tensor<D>) -> Vec<f32> {
    tensor.to_data().iter::<f32>().collect()
}

fn close<const D: usize>(what: &str, found: &Tensor<D>, expected: &Tensor<D>) {
    let error = relative_error(&values(found), &values(expected));
    assert!(error < ROUNDING, "{what}: off by {error:.1e}");
}

fn logits(model: &LanguageModel, sequences: &[Sequence], device: &Device) -> Tensor<3> {
    model.forward(Batch::new(sequences, device).tokens).logits
}

fn the_gradient_does_not_depend_on_the_cut_into_micro_batches(device: Device) {
    let device = device.autodiff();
    let mut pooled = tiny();
    pooled.router.balance = firebox_model::config::BalanceKind::Pooled;
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
    without.router.balance_coefficient = 0.0;
    without.router.z_coefficient = 0.0;
    let sequences = sequences(&with, 2, 12, &[]);
    let [with, without] = [with, without]
        .map(|config| forward_backward(&model(&config, &device).train(), &sequences, 2, &device));
    assert_eq!(with.loss, without.loss);
    assert_eq!(without.total_loss, without.loss);
    let health = with.health.health();
    let mean = |of: fn(&firebox_model::moe::stats::LayerHealth) -> f64| {
        health.iter().map(of).sum::<f64>() / health.len() as f64
    };
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

fn a_token_does_not_depend_on_its_neighbours_in_the_batch(device: Device) {
    let config = tiny();
    let model = model(&config, &device);
    let sequences = sequences(&config, 4, 11, &[]);
    let together = logits(&model, &sequences, &device);
    for row in 0..sequences.len() {
        let alone = logits(&model, &sequences[row..=row], &device);
        close(
            &format!("row {row}"),
            &together.clone().narrow(0, row, 1),
            &alone,
        );
    }
}

fn decoding_with_the_cache_equals_one_forward_pass(device: Device) {
    for config in [tiny(), with_experts(8, 8), tiny().dense_baseline()] {
        let model = model(&config, &device);
        let text = &sequences(&config, 2, 20, &[])[..];
        let whole = logits(&model, text, &device);
        // Pieces of several lengths: a long prompt, single tokens, a few at once.
        let mut cache = KeyValueCache::new(&config, 2, 20, &device);
        let mut start = 0;
        for length in [7, 1, 1, 4, 1, 6] {
            let end = start + length;
            let rows = text.iter().map(|sequence| &sequence.tokens[start..end]);
            let last = model.decode(token_tensor(rows, &device), &mut cache);
            let expected = whole.clone().narrow(1, end - 1, 1).squeeze_dim::<2>(1);
            close(&format!("position {end}"), &last, &expected);
            start = end;
        }
        assert_eq!(cache.remaining(), 0);
    }
}

fn mixture(config: &ModelConfig, device: &Device) -> MixtureOfExperts {
    let Ok(mixture) = MixtureOfExperts::new(
        config,
        0,
        "mixture",
        &mut RandomParameters { seed: 3, device },
    );
    mixture
}

fn input(tokens: usize, d_model: usize, device: &Device) -> Tensor<2> {
    let values: Vec<f32> = (0..tokens * d_model)
        .map(|i| (i as f32 * 0.77).sin())
        .collect();
    Tensor::from_data(
        burn::tensor::TensorData::new(values, [tokens, d_model]),
        device,
    )
}

/// Expert `e` of a mixture as a feed-forward by itself.
fn expert(mixture: &MixtureOfExperts, e: usize) -> DenseFeedForward {
    let of = |stack: &burn::module::Param<Tensor<3>>| {
        burn::module::Param::from_tensor(stack.val().narrow(0, e, 1).squeeze_dim::<2>(0))
    };
    let experts = &mixture.experts;
    DenseFeedForward {
        gate: of(&experts.gate),
        up: of(&experts.up),
        down: of(&experts.down),
    }
}

fn every_k_is_the_weighted_sum_of_the_chosen_experts_and_k_equal_e_the_dense_sum(device: Device) {
    for (experts, per_token) in [(1, 1), (5, 1), (5, 2), (5, 4), (5, 5), (8, 8)] {
        for normalize in [true, false] {
            let mut config = with_experts(experts, per_token);
            config.router.normalize = normalize;
            let mixture = mixture(&config, &device);
            let x = input(13, config.d_model, &device);
            let (output, routing) = mixture.forward(x.clone());
            let probabilities = values(&routing.probabilities);
            let chosen = routing.plan.chosen().into_data();
            let chosen: Vec<u32> = chosen.iter::<i32>().map(|e| e as u32).collect();
            let answers: Vec<Vec<f32>> = (0..experts)
                .map(|e| values(&expert(&mixture, e).forward(x.clone())))
                .collect();
            let mut expected = vec![0.0f32; 13 * config.d_model];
            for token in 0..13 {
                let chosen = &chosen[token * per_token..][..per_token];
                let probability = |e: u32| probabilities[token * experts + e as usize];
                let sum: f32 = if normalize {
                    chosen.iter().map(|&e| probability(e)).sum()
                } else {
                    1.0
                };
                for &e in chosen {
                    for i in token * config.d_model..(token + 1) * config.d_model {
                        expected[i] += probability(e) / sum * answers[e as usize][i];
                    }
                }
            }
            let error = relative_error(&values(&output), &expected);
            assert!(
                error < ROUNDING,
                "{per_token} of {experts}: off by {error:.1e}"
            );
        }
    }
}

fn one_expert_is_the_dense_feed_forward_with_the_same_weights(device: Device) {
    let config = with_experts(1, 1);
    let mixture = mixture(&config, &device);
    let x = input(9, config.d_model, &device);
    let (output, _) = FeedForward::Moe(mixture.clone()).forward(x.clone());
    let (expected, none) = FeedForward::Dense(expert(&mixture, 0)).forward(x);
    assert!(none.is_none());
    close("output", &output, &expected);
}

#[test]
fn the_dense_baseline_has_the_active_shape() {
    let baseline = tiny().dense_baseline();
    assert_eq!(baseline.feed_forward, FeedForwardKind::Dense);
    let [moe, dense] =
        [tiny(), baseline].map(|config| firebox_model::accounting::Accounting::of(&config));
    // But for the router's own product, of 2 · d_model · experts a layer.
    let router = 2.0 * 24.0 * 8.0 * 2.0;
    assert_eq!(moe.operations.forward - router, dense.operations.forward);
}

fn the_order_of_experts_changes_nothing(device: Device) {
    struct Permute<'a>(&'a [usize]);
    impl MapParameter for Permute<'_> {
        fn map<const D: usize>(&mut self, path: &str, value: Tensor<D>) -> Tensor<D> {
            let dimension = match path {
                _ if path.contains(".experts.") => 0,
                _ if path.ends_with("router.weight") => 1,
                _ => return value,
            };
            let parts = self
                .0
                .iter()
                .map(|&expert| value.clone().narrow(dimension, expert, 1));
            Tensor::cat(parts.collect(), dimension)
        }
    }
    let config = tiny();
    let model = model(&config, &device);
    let text = sequences(&config, 3, 12, &[]);
    let expected = logits(&model, &text, &device);
    let permuted = map(model, &mut Permute(&[3, 1, 7, 0, 6, 2, 5, 4]));
    close("logits", &logits(&permuted, &text, &device), &expected);
}

fn a_mixture_whose_router_is_indifferent_is_balanced_at_one_for_every_k(device: Device) {
    for per_token in 1..=4 {
        // Token t chooses experts t, t + 1 …: evenly many tokens per expert, with even probabilities.
        let chosen: Vec<u32> = (0..8u32)
            .flat_map(|t| (0..per_token as u32).map(move |choice| (t + choice) % 4))
            .collect();
        let routing = [Routing {
            layer: 0,
            logits: Tensor::zeros([8, 4], &device),
            probabilities: Tensor::full([8, 4], 0.25, &device),
            plan: firebox_kernels::dispatch::DispatchPlan::new(&chosen, 4, per_token, &device),
        }];
        let mut tokens_per_expert = TokensPerExpert::default();
        tokens_per_expert.add(&routing, None, 8);
        let balance = values(&per_layer(&routing, None, &tokens_per_expert)[0])[0];
        assert!((balance - 1.0).abs() < 1e-6, "k = {per_token}: {balance}");
        let balance = values(&pooled(&routing, None, &tokens_per_expert).unwrap())[0];
        assert!(
            (balance - per_token as f32).abs() < 1e-5,
            "pooled, k = {per_token}: {balance}"
        );
    }
}

fn evaluation_is_repeatable_and_leaves_the_model_as_it_was(device: Device) {
    let mut config = tiny();
    config.router.bias_update_rate = 0.01;
    let mut model = model(&config, &device.autodiff()).train();
    model.set_router_bias(&vec![vec![0.1, 0.0, -0.1, 0.0, 0.0, 0.0, 0.0, 0.0]; 2]);
    let text = sequences(&config, 5, 12, &[0, 0, 0, 0, 6]);
    let evaluate = |rows| evaluate(&model.valid(), text.iter().cloned(), 50, rows, |_| {});
    let first = evaluate(2);
    assert_eq!(first, evaluate(2));
    assert_eq!(first.tokens, 54);
    let all_at_once = evaluate(5);
    assert!((first.nats_per_token - all_at_once.nats_per_token).abs() < 1e-6);
    assert_eq!(model.router_bias()[1][0], 0.1);
}

/// Records the parts that it observes, and changes nothing.
struct Recorder(Vec<LayerPart>);

impl Observer for Recorder {
    fn values(&mut self, layer_part: LayerPart, computed: Tensor<2>) -> Tensor<2> {
        self.0.push(layer_part);
        computed
    }

    fn selection(
        &mut self,
        layer: usize,
        experts: Vec<u32>,
        weights: Tensor<2>,
    ) -> (Vec<u32>, Tensor<2>) {
        let layer = Some(layer);
        self.0
            .extend([Part::Selection, Part::RoutingWeights].map(|part| LayerPart { layer, part }));
        (experts, weights)
    }
}

fn the_parts_one_by_one_are_the_whole(device: Device) {
    for config in [tiny(), tiny().dense_baseline()] {
        let model = model(&config, &device);
        let tokens = Batch::new(&sequences(&config, 3, 12, &[]), &device).tokens;
        let mut seen = Recorder(Vec::new());
        let parts = forward_observed(&model, tokens.clone(), &mut seen);
        assert_eq!(seen.0, layer_parts(&config));
        let whole = model.forward(tokens.clone()).logits.flatten::<2>(0, 1);
        close("parts", &parts, &whole);
        let trace = model.trace(tokens, None).output.logits.flatten::<2>(0, 1);
        assert_eq!(values(&trace), values(&whole), "a trace without padding");
    }
}
