//! Plans of a model that is small enough to count by hand: bytes are seconds, or operations, or messages.

use firebox_model::accounting::{Parameters, PictureOperations};
use firebox_model::config::{AttentionKind, LayerConfig, ModelConfig, QkNorm, VisionConfig};
use firebox_model::parallel::RankLayout;

use super::*;
use crate::testing::tiny_config;

/// Two dense layers. Each has 32 + 16 + 16 + 32 parameters of attention, 8 of norms and 3 · 24 of its feed-forward, which
/// are 176; the embedding has 40, the last norm 4, and the head 40.
fn model() -> ModelConfig {
    ModelConfig {
        vocab_size: 10,
        d_model: 4,
        heads: 2,
        kv_heads: 1,
        head_dim: 4,
        rotary_dim: 4,
        layers: vec![LayerConfig::dense(6); 2],
        moe: None,
        ..tiny_config()
    }
}

/// Four experts, of which each token visits two, 12 wide; four query heads.
fn mixture() -> ModelConfig {
    let mut config = ModelConfig {
        layers: vec![LayerConfig::MOE; 2],
        moe: tiny_config().moe,
        heads: 4,
        ..model()
    };
    if let Some(moe) = &mut config.moe {
        moe.experts.d_ff = 12;
    }
    config
}

/// What takes no time at all.
const INSTANT: f64 = 1e30;

fn hardware() -> Hardware {
    let none = Link {
        bandwidth: INSTANT,
        latency: 0.0,
    };
    Hardware {
        name: "by hand".to_owned(),
        memory_bytes: 1000.0,
        memory_bandwidth: INSTANT,
        peak_flops: INSTANT,
        node: 8,
        flops_efficiency: 1.0,
        bandwidth_efficiency: 1.0,
        overlap: 1.0,
        layer_latency: 0.0,
        shared: None,
        link: none,
        network: none,
        price: Price {
            dollars_per_hour: 3600.0,
        },
    }
}

fn workload(batch: usize) -> Workload {
    Workload {
        batch,
        prompt: 3,
        output: 2,
        pictures: 0,
        widths: Widths {
            weight: 1.0,
            number: 1,
            cache: 1,
            message: 1,
        },
    }
}

fn layout(pipeline: usize, tensor: usize, expert: usize) -> RankLayout {
    RankLayout {
        pipeline,
        tensor,
        expert,
    }
}

fn plan(config: &ModelConfig, layout: RankLayout, hardware: &Hardware) -> Plan {
    Plan::of(config, layout, hardware, workload(1)).unwrap()
}

fn assert_near(found: f64, expected: f64) {
    assert!((found / expected - 1.0).abs() < 1e-9, "{found}, {expected}");
}

#[test]
fn bytes_that_are_read() {
    let mut hardware = hardware();
    hardware.memory_bandwidth = 1.0;
    let found = plan(&model(), RankLayout::ONE, &hardware);
    // All weights and a row of the embedding, and keys and values of 4 positions in two layers.
    assert_near(found.token_seconds, 396.0 + 4.0 + 2.0 * 8.0 * 4.0);
    // Three rows, and half of the prompt.
    assert_near(found.first_token_seconds, 396.0 + 12.0 + 2.0 * 8.0 * 1.5);
    // A token, and half of a prompt for each, at a dollar a second.
    assert_near(found.dollars_per_million, (464.0 + 432.0 / 2.0) * 1e6);

    let mut windowed = model();
    windowed.layers[1].attention = AttentionKind::Window(2);
    let found = plan(&windowed, RankLayout::ONE, &hardware);
    assert_near(found.token_seconds, 396.0 + 4.0 + 8.0 * 4.0 + 8.0 * 2.0);

    // Keys and values in four bytes, the rest in two.
    let widths = Widths {
        weight: 2.0,
        number: 2,
        cache: 4,
        message: 1,
    };
    let wide = Workload {
        widths,
        ..workload(1)
    };
    let found = Plan::of(&model(), RankLayout::ONE, &hardware, wide).unwrap();
    assert_near(found.token_seconds, 2.0 * 400.0 + 4.0 * 64.0);
}

/// As where matrices are held in 8 bits.
#[test]
fn matrices_that_are_narrower_than_other_weights() {
    let mut hardware = hardware();
    hardware.memory_bandwidth = 1.0;
    let narrow = Workload {
        widths: Widths {
            number: 3,
            ..workload(1).widths
        },
        ..workload(1)
    };
    let found = |config| Plan::of(config, RankLayout::ONE, &hardware, narrow).unwrap();
    let (mut tied, untied) = (model(), model());
    tied.tied_embeddings = true;
    // Each layer has 168 parameters in matrices; the norms have 20. A row of the embedding is read, and 64 keys and values.
    let of_layers = 2.0 * 168.0;
    let plan = found(&untied);
    assert_near(plan.weight_bytes, of_layers + 40.0 + 3.0 * (20.0 + 40.0));
    let read = of_layers + 40.0 + 3.0 * (20.0 + 4.0);
    assert_near(plan.token_seconds, read + 64.0);
    // The head is read as the table that it is.
    let plan = found(&tied);
    assert_near(plan.weight_bytes, of_layers + 3.0 * (20.0 + 40.0));
    let read = of_layers + 3.0 * (20.0 + 40.0 + 4.0);
    assert_near(plan.token_seconds, read + 64.0);
}

#[test]
fn operations_that_are_computed() {
    let mut hardware = hardware();
    hardware.peak_flops = 1.0;
    let found = plan(&model(), RankLayout::ONE, &hardware);
    // Two for each weight, and four for each value of a query and position.
    assert_near(found.token_seconds, 2.0 * 396.0 + 4.0 * 2.0 * 8.0 * 4.0);
    // The head computes the last token alone.
    let expected = 2.0 * (3.0 * 356.0 + 40.0) + 4.0 * 3.0 * 2.0 * 8.0 * 1.5;
    assert_near(found.first_token_seconds, expected);
}

#[test]
fn layers_that_take_their_time() {
    let mut hardware = hardware();
    hardware.layer_latency = 5.0;
    assert_near(
        plan(&model(), RankLayout::ONE, &hardware).token_seconds,
        10.0,
    );
    assert_near(
        plan(&model(), layout(2, 1, 1), &hardware).token_seconds,
        10.0,
    );
}

#[test]
fn sends_between_stages() {
    let mut hardware = hardware();
    hardware.link = Link {
        bandwidth: 1.0,
        latency: 10.0,
    };
    let found = plan(&model(), layout(2, 1, 1), &hardware);
    assert_near(found.token_seconds, 10.0 + 4.0);
    assert_near(found.first_token_seconds, 10.0 + 3.0 * 4.0);
    // Stages of one rank on nodes of one.
    hardware.node = 1;
    hardware.network.latency = 100.0;
    assert_near(
        plan(&model(), layout(2, 1, 1), &hardware).token_seconds,
        100.0,
    );
}

#[test]
fn all_reduces_within_stages() {
    let mut hardware = hardware();
    hardware.link = Link {
        bandwidth: 1.0,
        latency: 10.0,
    };
    // Of the embedding, and two of each layer: up and down, and half of four bytes twice.
    let found = plan(&model(), layout(1, 2, 1), &hardware);
    assert_near(found.token_seconds, 5.0 * (20.0 + 4.0));
    assert_near(found.first_token_seconds, 5.0 * (20.0 + 12.0));
    let mut normed = model();
    normed.qk_norm = QkNorm::Projection;
    // And of two sums of squares in f32 a layer.
    let found = plan(&normed, layout(1, 2, 1), &hardware);
    assert_near(found.token_seconds, 5.0 * 24.0 + 2.0 * (20.0 + 8.0));
    // The second stage of three ranks is on two nodes of four.
    hardware.node = 4;
    hardware.network.latency = 100.0;
    let mut wide = model();
    (wide.heads, wide.head_dim) = (3, 4);
    let found = plan(&wide, layout(2, 3, 1), &hardware);
    let within = 3.0 * (2.0 * 2.0 * 10.0 + 2.0 * (2.0 / 3.0) * 4.0);
    let between = 2.0 * (2.0 * 2.0 * 100.0) + 100.0;
    assert_near(found.token_seconds, within + between);
}

#[test]
fn memory_of_a_rank() {
    let found = |batch| Plan::of(&model(), RankLayout::ONE, &hardware(), workload(batch)).unwrap();
    let two = found(2);
    assert_eq!(two.weight_bytes, 436.0);
    // Five positions in two layers.
    assert_eq!(two.cache_bytes, 2.0 * 80.0);
    // For each token of a prompt 12 bytes a value of the stream, and queries, keys and values twice; 40 bytes of logits.
    assert_eq!(two.activation_bytes, 3.0 * (48.0 + 2.0 * 16.0) + 2.0 * 40.0);
    assert_eq!((two.largest_batch, two.fits), (2, true));
    assert!(!found(3).fits);
}

#[test]
fn groups_of_experts() {
    let mut hardware = hardware();
    hardware.memory_bandwidth = 1.0;
    let parts = |expert| plan(&mixture(), layout(1, 4, expert), &hardware);
    let (divided, whole) = (parts(1), parts(2));
    // Two experts, 6 wide, instead of four, 3 wide.
    assert_eq!(divided.weight_bytes, whole.weight_bytes);
    assert_eq!(divided.token_seconds, whole.token_seconds);
    // Attention is widest, with 4 + 8 values, unless both experts of a token are on one rank.
    let logits = 4.0 * 3.0;
    assert_eq!(divided.activation_bytes, 3.0 * (48.0 + 2.0 * 12.0) + logits);
    assert_eq!(
        whole.activation_bytes,
        3.0 * (48.0 + 3.0 * 2.0 * 6.0) + logits
    );
    assert_eq!(whole.expert_utilization, Some(0.5));
}

#[test]
fn micro_batches_follow_each_other() {
    let mut hardware = hardware();
    hardware.peak_flops = 1.0;
    let seconds = |batch| {
        let found = Plan::of(&model(), layout(2, 1, 1), &hardware, workload(batch));
        found.unwrap().token_seconds
    };
    let of_layer = 2.0 * 176.0 + 4.0 * 8.0 * 4.0;
    let of_head = 2.0 * 44.0;
    assert_near(seconds(1), 2.0 * of_layer + of_head);
    // Each of two texts waits for the other on the stage with the head.
    assert_near(seconds(2), 2.0 * (of_layer + of_head));
    assert_near(seconds(4), 4.0 * (of_layer + of_head));
    // Where both stages share one core, neither gains by the other.
    hardware.shared = Some(Shared {
        cores: 1,
        memory_bandwidth: INSTANT,
        peak_flops: 1.0,
    });
    let shared = Plan::of(&model(), layout(2, 1, 1), &hardware, workload(2)).unwrap();
    assert_near(shared.token_seconds, 4.0 * (of_layer + of_head));
}

/// [`model`] with a layer of 198 parameters that attends to pictures of ten positions: 32 + 16 + 16 + 32 of attention, 16 of
/// norms, 2 of gates and 3 · 28 of its feed-forward. A row of the embedding is an image token's, and seven are spare.
fn seeing() -> ModelConfig {
    let vision = VisionConfig {
        width: 6,
        d_ff: 10,
        heads: 2,
        layers: 1,
        global_layers: 1,
        tile_size: 9,
        patch_size: 4,
        max_tiles: 2,
        aspect_ratios: vec![[1, 1]],
        intermediate_layers: vec![0],
        norm_epsilon: 1e-5,
        initializer_range: 0.02,
    };
    model().with_vision(vision, &[1], 7).unwrap()
}

#[test]
fn pictures_that_are_looked_at() {
    let config = seeing();
    let planned = |pictures, layout, hardware: &Hardware| {
        let workload = Workload {
            pictures,
            ..workload(1)
        };
        Plan::of(&config, layout, hardware, workload).unwrap()
    };
    let parameters = Parameters::of(&config);
    let tower = (parameters.tower + parameters.projector) as f64;
    assert_eq!(parameters.cross_attention, 198);
    let found = planned(2, RankLayout::ONE, &hardware());
    assert_eq!(found.weight_bytes, 436.0 + 32.0 + 198.0 + tower);
    // Keys and values of eight for each of ten positions.
    assert_eq!(found.picture_bytes, 2.0 * 80.0);
    assert_eq!(found.cache_bytes, 80.0 + 2.0 * 80.0);

    let mut slow = hardware();
    slow.memory_bandwidth = 1.0;
    let found = planned(2, RankLayout::ONE, &slow);
    // Weights of keys and values are read with the pictures alone.
    let layer = 198.0 - 32.0;
    assert_near(found.token_seconds, 396.0 + 4.0 + 64.0 + layer + 160.0);
    let first = 396.0 + 12.0 + 24.0 + layer + 160.0 + tower + 32.0;
    assert_near(found.first_token_seconds, first);

    let mut busy = hardware();
    busy.peak_flops = 1.0;
    let found = planned(2, RankLayout::ONE, &busy);
    let text = 2.0 * 396.0 + 4.0 * 2.0 * 8.0 * 4.0;
    let seeing = 2.0 * layer + 4.0 * 8.0 * 20.0;
    assert_near(found.token_seconds, text + seeing);
    let prompt = 2.0 * (3.0 * 356.0 + 40.0) + 4.0 * 3.0 * 2.0 * 8.0 * 1.5;
    let encoder = PictureOperations::of(&config).unwrap().encoder;
    let looking = 2.0 * (encoder + 2.0 * 10.0 * 32.0);
    assert_near(found.first_token_seconds, prompt + 3.0 * seeing + looking);

    // Two stages that attend to pictures look at them at the same time.
    let twice = model().with_vision(config.vision.clone().unwrap(), &[1, 3], 7);
    let twice = twice.unwrap();
    let first = |pictures, pipeline| {
        let workload = Workload {
            pictures,
            ..workload(1)
        };
        let found = Plan::of(&twice, layout(pipeline, 1, 1), &busy, workload);
        found.unwrap().first_token_seconds
    };
    let (one, two) = (first(2, 1), first(2, 2));
    assert_near(two, one - 2.0 * 2.0 * 10.0 * 32.0);

    // Without pictures it is the text model.
    for hardware in [&slow, &busy] {
        let (without, text) = (
            planned(0, RankLayout::ONE, hardware),
            plan(&model(), RankLayout::ONE, hardware),
        );
        assert_near(without.token_seconds, text.token_seconds);
        assert_near(without.first_token_seconds, text.first_token_seconds);
    }
    let sums = |pictures| {
        let found = planned(pictures, layout(1, 2, 1), &hardware());
        found.traffic.layer_sums.count
    };
    assert_eq!((sums(0), sums(1)), (4, 6));
}
