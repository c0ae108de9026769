//! Properties of layouts of arbitrary models.

use std::collections::BTreeMap;

use burn::tensor::Device;
use proptest::prelude::*;

use super::stages::{Cost, LayerCosts, stages};
use super::traffic::{PassTokens, PassTraffic};
use super::*;
use crate::config::{
    AttentionBias, ExpertActivation, ExpertsConfig, LayerConfig, ModelConfig, MoeConfig, QkNorm,
    RouterConfig,
};
use crate::language_model::LanguageModel;
use crate::parameters::{
    Axis, Initializer, ParameterInfo, ParameterSource, ParameterSpec, RandomParameters, Role,
};
use crate::testing::{clamped, moe, seeing, tiny};
use firebox_runtime::on_every_device;
use firebox_runtime::testing::values;

on_every_device!(a_rank_draws_its_part_of_the_same_weights);

/// Small models with everything that a model can have, some of which see pictures.
fn model() -> impl Strategy<Value = ModelConfig> {
    let crossing = proptest::collection::btree_set(1usize..8, 0..3);
    (text_model(), crossing).prop_map(|(text, crossing)| {
        let layers = text.layers.len();
        let crossing: Vec<usize> = crossing
            .into_iter()
            .filter(|&layer| layer < layers + 1)
            .collect();
        let vision = seeing().vision.expect("a tower");
        // Not every text model can be given one.
        text.with_vision(vision, &crossing, 9).unwrap_or(text)
    })
}

fn text_model() -> impl Strategy<Value = ModelConfig> {
    let heads = (1usize..5, 1usize..5, 1usize..3);
    let norms = prop_oneof![
        Just(QkNorm::None),
        Just(QkNorm::Projection),
        Just(QkNorm::Head)
    ];
    let biases = prop_oneof![
        Just(AttentionBias::None),
        Just(AttentionBias::Qkv),
        Just(AttentionBias::All)
    ];
    let layers = proptest::collection::vec(prop_oneof![Just(0usize), 4usize..9], 1..7);
    let experts = (
        2usize..7,
        3usize..12,
        any::<bool>(),
        0usize..2,
        any::<bool>(),
    );
    (
        heads,
        norms,
        biases,
        any::<[bool; 2]>(),
        layers,
        experts,
        10usize..40,
    )
        .prop_map(
            |(
                (kv_heads, groups, half),
                qk_norm,
                attention_bias,
                [sinks, tied],
                layers,
                experts,
                vocab_size,
            )| {
                let (count, d_ff, biases, shared, logit_bias) = experts;
                let kinds = layers.iter().map(|&d_ff| match d_ff {
                    0 => LayerConfig::MOE,
                    _ => LayerConfig::dense(d_ff),
                });
                let layers: Vec<LayerConfig> = kinds.collect();
                let has_moe = layers.contains(&LayerConfig::MOE);
                ModelConfig {
                    vocab_size,
                    kv_heads,
                    heads: kv_heads * groups,
                    head_dim: 2 * half,
                    rotary_dim: 2,
                    qk_norm,
                    attention_bias,
                    sinks,
                    tied_embeddings: tied,
                    layers,
                    moe: has_moe.then_some(MoeConfig {
                        experts: ExpertsConfig {
                            count,
                            top_k: 2,
                            d_ff,
                            activation: ExpertActivation::Swiglu,
                            biases,
                            shared_d_ff: shared * 9,
                            shared_gate: shared > 0,
                        },
                        router: RouterConfig {
                            logit_bias,
                            ..RouterConfig::DEFAULT
                        },
                    }),
                    ..tiny()
                }
            },
        )
}

/// A model, and a layout that it can have.
fn laid_out() -> impl Strategy<Value = (ModelConfig, RankLayout)> {
    let layout = (1usize..7, 1usize..7, 1usize..4);
    (model(), layout).prop_filter_map("a layout that cannot be", |(config, numbers)| {
        let (pipeline, group, expert) = numbers;
        let layout = RankLayout {
            pipeline,
            tensor: group * expert,
            expert,
        };
        layout.check(&config).is_ok().then_some((config, layout))
    })
}

/// How often a rank of these counts each value of a parameter: copies of key/value heads count once.
fn counts(shards: &[Shard], parameter: &ParameterInfo) -> Vec<usize> {
    let mut counts = vec![0; parameter.elements() as usize];
    for shard in shards {
        let Some(slice) = shard.slice(parameter) else {
            continue;
        };
        let mut ranges = slice.ranges().to_vec();
        for (ranges, axis) in ranges.iter_mut().zip(&parameter.axes) {
            if *axis == Axis::KvHeads {
                let mut counted = shard.counted_kv_heads().into_iter();
                ranges.retain(|_| counted.next().unwrap());
            }
        }
        let counted = Slice::new(parameter.shape.clone(), ranges);
        counted
            .runs()
            .flatten()
            .for_each(|place| counts[place] += 1);
    }
    counts
}

/// On how many ranks a parameter is by rule: on each tensor rank of a stage where nothing divides it, for a tied
/// embedding on two stages, and for the tower on each that attends to pictures.
fn copies(parameter: &ParameterInfo, config: &ModelConfig, layout: RankLayout) -> usize {
    if parameter.path.starts_with("vision.") {
        let stages = stages(config, layout.pipeline).into_iter();
        let seeing = stages.filter(|stage| {
            config.layers[stage.clone()]
                .iter()
                .any(LayerConfig::is_cross)
        });
        return seeing.count() * layout.tensor;
    }
    let undivided = match parameter.role {
        Role::Router | Role::RouterBias | Role::Gate => true,
        Role::Norm => parameter.axes != [Axis::Heads] && parameter.axes != [Axis::KvHeads],
        _ => false,
    };
    let twice = parameter.role == Role::Embedding && config.tied_embeddings && layout.pipeline > 1;
    match (undivided, twice) {
        (true, _) => layout.tensor,
        (false, true) => 2,
        (false, false) => 1,
    }
}

fn sizes(of: &[usize]) -> [usize; 2] {
    [*of.iter().min().unwrap(), *of.iter().max().unwrap()]
}

proptest! {
    #[test]
    fn every_value_is_counted_as_often_as_the_rule_says((config, layout) in laid_out()) {
        let shards = Shard::all(&config, layout).unwrap();
        for parameter in LanguageModel::parameter_list(&config) {
            let expected = copies(&parameter, &config, layout);
            for (place, count) in counts(&shards, &parameter).into_iter().enumerate() {
                prop_assert_eq!(count, expected, "{} at {}", &parameter.path, place);
            }
        }
    }

    #[test]
    fn without_copies_every_value_is_held_once((config, layout) in laid_out()) {
        let shards = Shard::all(&config, layout).unwrap();
        for parameter in LanguageModel::parameter_list(&config) {
            let held = shards.iter().map(|shard| {
                let held = shard.slice(&parameter).map_or(0, |slice| slice.elements());
                held - shard.copies(&parameter)
            });
            prop_assert_eq!(held.sum::<usize>() as u128, parameter.elements(), "{}", &parameter.path);
        }
    }

    #[test]
    fn a_gradient_is_a_ranks_own_where_its_values_are((config, layout) in laid_out()) {
        let layout = RankLayout { tensor: layout.tensor, ..RankLayout::ONE };
        prop_assume!(layout.check(&config).is_ok());
        let shards = Shard::all(&config, layout).unwrap();
        for parameter in LanguageModel::parameter_list(&config) {
            // Key/value heads that several ranks need count for each of them.
            let slices = shards.iter().map(|shard| shard.slice(&parameter));
            let slices: Option<Vec<Slice>> = slices.collect();
            let is_own = slices.is_some_and(|slices| {
                let mut ranks = vec![0; parameter.elements() as usize];
                let places = slices.iter().flat_map(|slice| slice.runs().flatten());
                places.for_each(|place| ranks[place] += 1);
                ranks.iter().all(|&ranks| ranks == 1)
            });
            for shard in &shards {
                let found = shard.gradient(&parameter) == GradientPart::Own;
                prop_assert_eq!(found, is_own, "{}", &parameter.path);
            }
        }
    }

    #[test]
    fn shapes_of_a_rank_fit_together((config, layout) in laid_out()) {
        let parameters: BTreeMap<String, ParameterInfo> = LanguageModel::parameter_list(&config)
            .into_iter()
            .map(|parameter| (parameter.path.clone(), parameter))
            .collect();
        let shards = Shard::all(&config, layout).unwrap();
        for shard in &shards {
            let shape = |path: &str| match shard.holding(&parameters[path]) {
                Holding::Part(slice) => slice.shape(),
                Holding::Zeros(shape) => shape,
                Holding::Elsewhere => panic!("{path} is elsewhere"),
            };
            prop_assert!(!shard.layers().is_empty());
            let (queries, kv_heads) = (shard.query_heads(), shard.kv_heads());
            prop_assert!(queries.len().is_multiple_of(kv_heads.len()));
            let group = queries.len() / kv_heads.len();
            for (place, query) in queries.clone().enumerate() {
                let head = query / (config.heads / config.kv_heads);
                prop_assert_eq!(kv_heads[place / group], head);
            }
            for layer in shard.layers() {
                let of = |name: &str| shape(&format!("blocks.{layer}.{name}"));
                let (d_model, width) = (config.d_model, config.head_dim);
                let crosses = config.layers[layer].is_cross();
                let attention = |name: &str| match crosses {
                    false => of(&format!("attention.{name}.weight")),
                    true => of(&format!("cross_attention.{name}.weight")),
                };
                prop_assert_eq!(attention("query"), [d_model, queries.len() * width]);
                prop_assert_eq!(attention("key"), [d_model, kv_heads.len() * width]);
                prop_assert_eq!(attention("value"), attention("key"));
                prop_assert_eq!(attention("output"), [queries.len() * width, d_model]);
                if crosses {
                    prop_assert!(shard.sees());
                    prop_assert_eq!(of("cross_attention.key_norm.gamma"), [width]);
                }
                if config.qk_norm == QkNorm::Projection && !crosses {
                    prop_assert_eq!(of("attention.key_norm.gamma"), [kv_heads.len() * width]);
                }
                if config.sinks && !crosses {
                    prop_assert_eq!(of("attention.sinks"), [queries.len()]);
                }
                match config.dense_d_ff(layer) {
                    Some(_) => {
                        let [_, inner] = of("feed_forward.gate")[..] else { panic!() };
                        prop_assert_eq!(of("feed_forward.down"), [inner, d_model]);
                    }
                    None => {
                        let [experts, _, inner] = of("feed_forward.experts.gate")[..] else { panic!() };
                        prop_assert!(experts > 0 && inner > 0);
                        prop_assert_eq!(of("feed_forward.experts.down"), [experts, inner, d_model]);
                        if config.moe.as_ref().unwrap().experts.biases {
                            prop_assert_eq!(of("feed_forward.experts.biases.up"), [experts, inner]);
                            prop_assert_eq!(of("feed_forward.experts.biases.down"), [experts, d_model]);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn shares_of_a_dimension_differ_by_at_most_one((config, layout) in laid_out()) {
        let shards = Shard::all(&config, layout).unwrap();
        for parameter in LanguageModel::parameter_list(&config) {
            let shapes: Vec<Vec<usize>> = shards
                .iter()
                .filter_map(|shard| Some(shard.slice(&parameter)?.shape()))
                .collect();
            for (dimension, axis) in parameter.axes.iter().enumerate() {
                let unit = match axis {
                    Axis::Heads => config.head_dim,
                    // As many as the query heads of a rank need.
                    Axis::KvHeads => continue,
                    _ => 1,
                };
                let sizes = sizes(&shapes.iter().map(|shape| shape[dimension]).collect::<Vec<_>>());
                prop_assert!(sizes[1] - sizes[0] <= unit, "{} {axis:?}: {sizes:?}", &parameter.path);
            }
        }
    }

    /// No other division of the layers has a lighter fullest stage.
    #[test]
    fn the_fullest_stage_is_as_light_as_can_be((config, layout) in laid_out()) {
        let (layers, count) = (config.layers.len(), layout.pipeline);
        let costs = LayerCosts::of(&config);
        let [whole] = costs.of_stages(std::slice::from_ref(&(0..layers)))[..] else { panic!() };
        // A tied head is a second copy of the embedding.
        let twice = |of_one: f64| match config.tied_embeddings {
            true => of_one + (config.vocab_size * config.d_model) as f64,
            false => of_one,
        };
        let fullest = |stages: &[std::ops::Range<usize>]| {
            let costs = costs.of_stages(stages).into_iter();
            let shares = costs.map(|cost| {
                (cost.parameters / twice(whole.parameters)).max(cost.operations / whole.operations)
            });
            shares.fold(0.0, f64::max)
        };
        let mut least = f64::INFINITY;
        // Every set of places to cut at.
        for cuts in 0u32..1 << (layers - 1) {
            if cuts.count_ones() as usize + 1 != count {
                continue;
            }
            let mut ends: Vec<usize> = (1..layers).filter(|end| cuts >> (end - 1) & 1 == 1).collect();
            ends.push(layers);
            let starts = std::iter::once(0).chain(ends.iter().copied());
            let stages: Vec<_> = starts.zip(ends.iter().copied()).map(|(start, end)| start..end).collect();
            least = least.min(fullest(&stages));
        }
        let found = stages(&config, count);
        prop_assert!(count == 1 || fullest(&found) <= least * (1.0 + 1e-9), "{found:?}");
    }
}

/// The described GPT-4, as far as its layout goes.
fn described() -> ModelConfig {
    let mut config = ModelConfig {
        vocab_size: 100_277,
        d_model: 10_752,
        heads: 168,
        kv_heads: 1,
        head_dim: 128,
        rotary_dim: 128,
        layers: vec![LayerConfig::MOE; 120],
        ..tiny()
    };
    let experts = &mut moe(&mut config).experts;
    (experts.count, experts.d_ff) = (16, 28_672);
    config
}

#[test]
fn the_described_model_over_128_ranks() {
    let config = described();
    let stages = stages(&config, 16);
    let count = |layers| stages.iter().filter(|stage| stage.len() == layers).count();
    assert_eq!((count(8), count(7)), (8, 8), "{stages:?}");
    let costs = LayerCosts::of(&config).of_stages(&stages);
    for of in [|cost: &Cost| cost.parameters, |cost: &Cost| cost.operations] {
        let sum: f64 = costs.iter().map(of).sum();
        let largest = costs.iter().map(of).fold(0.0, f64::max);
        let balance = sum / 16.0 / largest;
        assert!(balance >= 0.9375, "{balance}");
    }

    let layout = RankLayout {
        pipeline: 16,
        tensor: 8,
        expert: 1,
    };
    let shards = Shard::all(&config, layout).unwrap();
    assert_eq!(shards.len(), 128);
    // Multi-query attention: 21 query heads and the one key/value head on each rank, which counts on the first.
    assert!(shards.iter().all(|shard| shard.query_heads().len() == 21));
    assert!(shards.iter().all(|shard| shard.kv_heads() == [0]));
    let counted = shards.iter().map(Shard::counted_kv_heads);
    let counted = counted.filter(|counted| counted[0]).count();
    assert_eq!(counted, 16);

    // A token in bf16: two sums a layer, and 15 hops of 21.5 kB.
    let tokens = PassTokens {
        count: 1,
        width: 2,
        see: false,
    };
    let traffic = PassTraffic::of_pass(&config, layout.tensor, &stages, tokens);
    assert_eq!(traffic.layer_sums.count, 240);
    assert_eq!(traffic.hops.count, 15);
    assert_eq!(traffic.hops.bytes, 15 * 21_504);
}

#[test]
fn query_heads_that_end_within_a_group_repeat_its_key_and_value_head() {
    let heads = |heads: usize, kv_heads: usize, tensor: usize| -> Vec<Vec<usize>> {
        let config = ModelConfig {
            heads,
            kv_heads,
            ..tiny()
        };
        let layout = RankLayout {
            tensor,
            ..RankLayout::ONE
        };
        let shards = Shard::all(&config, layout).unwrap();
        shards.iter().map(Shard::kv_heads).collect()
    };
    // Whole groups; half a group; one and a half, in halves; three of four, and the fourth with half of the next.
    assert_eq!(heads(8, 4, 2), [[0, 1], [2, 3]]);
    assert_eq!(heads(8, 2, 4), [[0], [0], [1], [1]]);
    assert_eq!(heads(12, 3, 2), [[0, 0, 1], [1, 2, 2]]);
    assert_eq!(heads(9, 3, 2), [vec![0, 0, 0, 1, 1], vec![1, 2, 2, 2]]);
    assert_eq!(heads(6, 2, 2), [[0], [1]]);
}

#[test]
fn a_bias_of_the_residual_stream_is_on_one_of_the_ranks_that_sum() {
    let config = clamped();
    let layout = RankLayout {
        pipeline: 1,
        tensor: 4,
        expert: 2,
    };
    let shards = Shard::all(&config, layout).unwrap();
    let parameters = LanguageModel::parameter_list(&config);
    let holders = |name: &str| -> Vec<usize> {
        let parameter = parameters.iter().find(|parameter| parameter.path == name);
        let holding = shards.iter().map(|shard| shard.holding(parameter.unwrap()));
        let mut holders = Vec::new();
        for (rank, holding) in holding.enumerate() {
            match holding {
                Holding::Part(_) => holders.push(rank),
                Holding::Zeros(shape) => assert_eq!(shape.last(), Some(&24)),
                Holding::Elsewhere => panic!("{name} is elsewhere"),
            }
        }
        holders
    };
    assert_eq!(holders("blocks.1.attention.output.bias"), [0]);
    assert_eq!(holders("blocks.1.feed_forward.experts.biases.down"), [0, 2]);
    assert_eq!(holders("blocks.1.feed_forward.experts.biases.up").len(), 4);
    assert_eq!(holders("blocks.1.feed_forward.router.logit_bias").len(), 4);
}

#[test]
fn a_rank_that_does_not_exist_is_refused() {
    let error = Shard::new(&tiny(), RankLayout::ONE, 1).unwrap_err();
    assert_eq!(
        error.to_string(),
        "--rank 1 is beyond the ranks of 1 pipeline stage × 1 tensor rank"
    );
}

/// Asks for some parameters of a model by itself, and compares them with the whole ones.
fn a_rank_draws_its_part_of_the_same_weights(device: Device) {
    let normal = Initializer::Normal(0.5);
    let query = ParameterSpec::new(
        "blocks.1.attention.query.weight",
        Role::Attention,
        [(Axis::Model, 24), (Axis::Heads, 24)],
        normal,
    );
    let down = ParameterSpec::new(
        "blocks.1.feed_forward.experts.down",
        Role::Experts,
        [
            (Axis::Experts, 8),
            (Axis::FeedForward, 20),
            (Axis::Model, 24),
        ],
        normal,
    );
    let bias = ParameterSpec::new(
        "blocks.1.attention.output.bias",
        Role::Bias,
        [(Axis::Model, 24)],
        normal,
    );
    let layout = RankLayout {
        pipeline: 2,
        tensor: 4,
        expert: 2,
    };
    let shard = Shard::new(&tiny(), layout, 7).unwrap();
    let mut whole = RandomParameters::new(9, &device);
    let mut part = RandomParameters::new(9, &device).of_shard(shard.clone());
    assert_eq!(part.shard(), Some(&shard));
    let mut check = |spec: ParameterSpec<2>| {
        let slice = shard.slice(&spec.info()).unwrap();
        let Ok(all) = whole.parameter(spec.clone());
        let Ok(mine) = part.parameter(spec);
        assert_eq!(mine.dims().to_vec(), slice.shape());
        assert_eq!(values(mine.val()), slice.take(&values(all.val())));
    };
    check(query);
    let slice = shard.slice(&down.info()).unwrap();
    assert_eq!(slice.shape(), [4, 10, 24]);
    let Ok(all) = RandomParameters::new(9, &device).parameter(down.clone());
    let Ok(mine) = part.parameter(down);
    assert_eq!(values(mine.val()), slice.take(&values(all.val())));
    // Of rank 4, the first one that adds up the output of attention.
    let Ok(zeros) = part.parameter(bias);
    assert_eq!(values(zeros.val()), [0.0; 24]);
}
