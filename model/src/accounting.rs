//! The cost of a model, from its configuration alone: parameters, floating-point operations and bytes.
//!
//! Nothing is allocated. Counts are `u128`, which holds products of four sizes of up to 2²⁴ each, the largest that a
//! configuration allows. Operations are `f64`: exact up to 2⁵³, and to 15 digits beyond.

mod latent;
mod pictures;

use serde::Serialize;

use crate::config::{AttentionBias, AttentionKind, ModelConfig, QkNorm};

pub use pictures::PictureOperations;

const BYTES_PER_F32: u128 = 4;

/// Number of parameters, by part of the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Parameters {
    /// The embedding table, `[vocab_size, d_model]`; eight rows more in a model that sees pictures.
    pub embedding: u128,
    /// Query, key, value and output projections of all layers, and those of latents.
    pub attention: u128,
    /// Router weights `[experts, d_model]` of all MoE layers, and where the shared experts have a gate, its `[d_model]`.
    pub router: u128,
    /// Gate, up and down projections of all layers: those of every expert and of the shared ones, or those of a dense
    /// layer's SwiGLU.
    pub feed_forward: u128,
    /// Norm gains: two `[d_model]` per layer, the final norm, and the norms of queries and keys.
    pub norms: u128,
    /// Biases and sinks of attention, and biases of routers and experts.
    pub biases: u128,
    /// The output head, `[vocab_size, d_model]`; 0 if it is tied to the embedding.
    pub head: u128,
    /// All of the layers that attend to pictures.
    #[serde(skip_serializing_if = "is_zero")]
    pub cross_attention: u128,
    /// The vision tower.
    #[serde(skip_serializing_if = "is_zero")]
    pub tower: u128,
    /// The projection of what comes out of the tower.
    #[serde(skip_serializing_if = "is_zero")]
    pub projector: u128,
}

/// A model of text alone says nothing of pictures.
#[allow(clippy::trivially_copy_pass_by_ref)] // as serde has it
fn is_zero(count: &u128) -> bool {
    *count == 0
}

impl Parameters {
    /// Counts the parameters of a model.
    pub fn of(config: &ModelConfig) -> Self {
        let [layers, d_model, vocab_size] =
            [config.text_layers(), config.d_model, config.vocab_size].map(|n| n as u128);
        let heads = config.heads as u128 * config.head_dim as u128;
        let kv_heads = config.kv_heads as u128 * config.head_dim as u128;
        let experts = experts(config) as u128;
        let latent = config.latent.as_ref();
        let latent = latent.map(|latent| latent::Latent::of(config, latent));
        let qk_norms = match config.qk_norm {
            QkNorm::None => 0,
            QkNorm::Projection => heads + kv_heads,
            QkNorm::Head => 2 * config.head_dim as u128,
        };
        let biases = match config.attention_bias {
            AttentionBias::None => 0,
            AttentionBias::Qkv => heads + 2 * kv_heads,
            AttentionBias::All => heads + 2 * kv_heads + d_model,
        };
        let sinks = if config.sinks {
            config.heads as u128
        } else {
            0
        };
        Self {
            embedding: config.embedding_rows() as u128 * d_model,
            // Query and output projections have the width of all heads, key and value projections that of the key/value heads.
            attention: match &latent {
                None => layers * 2 * d_model * (heads + kv_heads),
                Some(latent) => layers * latent.matrices,
            },
            router: moe_layers(config) * (experts + shared_gate(config)) * d_model,
            feed_forward: experts * expert_parameters_all_layers(config)
                + shared_experts(config)
                + dense_layers(config),
            norms: (2 * layers + 1) * d_model
                + layers * latent.as_ref().map_or(qk_norms, |latent| latent.norms),
            biases: layers * (latent.as_ref().map_or(biases, |latent| latent.biases) + sinks)
                + router_biases(config)
                + experts * expert_biases(config),
            head: if config.tied_embeddings {
                0
            } else {
                vocab_size * d_model
            },
            cross_attention: pictures::cross_attention(config),
            tower: config.vision.as_ref().map_or(0, pictures::tower),
            projector: pictures::projector(config),
        }
    }

    /// All parameters.
    pub fn total(&self) -> u128 {
        let shared = self.embedding + self.attention + self.router + self.biases;
        let pictures = self.cross_attention + self.tower + self.projector;
        shared + self.feed_forward + self.norms + self.head + pictures
    }
}

/// Parameters of one expert, summed over all layers: gate, up and down, `3 · d_model · d_ff` per MoE layer.
pub fn expert_parameters_all_layers(config: &ModelConfig) -> u128 {
    let d_ff = config.moe.as_ref().map_or(0, |moe| moe.experts.d_ff);
    moe_layers(config) * swiglu(config, d_ff)
}

/// Biases of one expert, summed over all layers: those of gate, up and down, `2 · d_ff + d_model` per MoE layer.
fn expert_biases(config: &ModelConfig) -> u128 {
    let biased = config.moe.as_ref().filter(|moe| moe.experts.biases);
    let of_layer = biased.map_or(0, |moe| 2 * moe.experts.d_ff + config.d_model);
    moe_layers(config) * of_layer as u128
}

/// Biases of all routers' logits.
fn router_biases(config: &ModelConfig) -> u128 {
    let biased = config.moe.as_ref().filter(|moe| moe.router.logit_bias);
    moe_layers(config) * biased.map_or(0, |moe| moe.experts.count as u128)
}

/// Experts of a layer's mixture; 0 in a model without one.
fn experts(config: &ModelConfig) -> usize {
    config.moe.as_ref().map_or(0, |moe| moe.experts.count)
}

fn moe_layers(config: &ModelConfig) -> u128 {
    config.moe_layers().count() as u128
}

/// Parameters of the shared experts of all layers.
fn shared_experts(config: &ModelConfig) -> u128 {
    let d_ff = config.moe.as_ref().map_or(0, |moe| moe.experts.shared_d_ff);
    moe_layers(config) * swiglu(config, d_ff)
}

/// Gates of the shared experts of a layer's mixture: one, or none.
fn shared_gate(config: &ModelConfig) -> u128 {
    let moe = config.moe.as_ref();
    u128::from(moe.is_some_and(|moe| moe.experts.shared_gate))
}

/// Parameters of the feed-forwards that a token passes through in the MoE layers.
fn active_experts(config: &ModelConfig) -> u128 {
    let d_ff = config
        .moe
        .as_ref()
        .map_or(0, |moe| moe.experts.active_d_ff());
    moe_layers(config) * swiglu(config, d_ff)
}

/// Feed-forward parameters of the dense layers.
fn dense_layers(config: &ModelConfig) -> u128 {
    let widths = config.dense_layers().map(|(_, d_ff)| d_ff);
    widths.map(|d_ff| swiglu(config, d_ff)).sum()
}

/// Positions that a token attends to, on average over a full context: half of it, or of as much of it as a window's width,
/// and all of the window behind that; none of the text in a layer that attends to pictures.
fn mean_keys(config: &ModelConfig, attention: AttentionKind) -> f64 {
    if attention == AttentionKind::Cross {
        return 0.0;
    }
    let context = config.context_length as f64;
    let window = attention
        .window()
        .map_or(context, |window| (window as f64).min(context));
    window - window * window / (2.0 * context)
}

fn swiglu(config: &ModelConfig, d_ff: usize) -> u128 {
    3 * config.d_model as u128 * d_ff as u128
}

/// Floating-point operations for one token; a multiplication and an addition count as two.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Operations {
    /// Forward pass, products with weights: 2 per active weight. Includes the head; the embedding is a lookup and costs
    /// nothing. Excludes attention scores.
    pub forward: f64,
    /// Forward pass, if every expert processed every token; equal to `forward` for a dense model.
    pub forward_every_expert: f64,
    /// Forward pass, attention scores and their product with the values, at full context: with causal attention a token
    /// attends to half the context on average, `2 · 2 · heads · head_dim · context / 2` per layer; with a window to fewer. With
    /// latent attention, those of keys and values of every head, as training computes them.
    pub attention_scores: f64,
    /// Training, three times `forward`: the backward pass has one product for the gradients of the inputs and one for
    /// those of the weights (arXiv 2001.08361, section 2.1). Excludes attention scores.
    pub training: f64,
}

/// Bytes of a training state in `f32`, on one device, without activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// The weights.
    pub weights: u128,
    /// One gradient per weight that is trained.
    pub gradients: u128,
    /// AdamW's two moments per weight that is trained.
    pub moments: u128,
}

impl Memory {
    /// Their sum.
    pub fn total(&self) -> u128 {
        self.weights + self.gradients + self.moments
    }
}

/// The cost of a model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Accounting {
    /// Parameters by part.
    pub parameters: Parameters,
    /// Total number of parameters.
    pub total: u128,
    /// Active parameters per token of a text without pictures: all but the experts that are not selected, the other rows of the
    /// embedding table, and what sees pictures.
    pub active: u128,
    /// Parameters of one expert, summed over all layers.
    pub expert_parameters_all_layers: u128,
    /// Floating-point operations for one token.
    pub operations: Operations,
    /// What pictures add to the operations; `None` for a model of text alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pictures: Option<PictureOperations>,
    /// Bytes of weights, gradients and moments in `f32` where all weights are trained.
    pub memory: Memory,
}

impl Accounting {
    /// Computes the cost of a model. The configuration must be valid ([`ModelConfig::validate`]).
    pub fn of(config: &ModelConfig) -> Self {
        let parameters = Parameters::of(config);
        let total = parameters.total();
        let selected = active_experts(config) + dense_layers(config);
        // A tied head multiplies with the embedding table, so its operations count although its parameters do not.
        let head = config.vocab_size as u128 * config.d_model as u128;
        let shared = parameters.attention + parameters.router + head;
        let lookup = if config.tied_embeddings {
            0
        } else {
            config.d_model as u128
        };
        let keys = config.layers.iter();
        let keys: f64 = keys.map(|layer| mean_keys(config, layer.attention)).sum();
        // A key of each head, and a value.
        let values = config
            .latent
            .map_or(config.head_dim, |latent| latent.value_dim);
        let of_head = (config.head_dim + values) as f64;
        let attention_scores = 2.0 * config.heads as f64 * of_head * keys;
        let forward = 2.0 * (shared + selected) as f64;
        let unselected = config
            .moe
            .as_ref()
            .map_or(0, |moe| moe.experts.count - moe.experts.top_k);
        let biases = parameters.biases - unselected as u128 * expert_biases(config);
        let weights = BYTES_PER_F32 * total;
        Self {
            parameters,
            total,
            active: shared + selected + parameters.norms + biases + lookup,
            expert_parameters_all_layers: expert_parameters_all_layers(config),
            operations: Operations {
                forward,
                forward_every_expert: 2.0 * (shared + parameters.feed_forward) as f64,
                attention_scores,
                training: 3.0 * forward,
            },
            pictures: PictureOperations::of(config),
            memory: Memory {
                weights,
                gradients: weights,
                moments: 2 * weights,
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{
        ExpertActivation, ExpertsConfig, LatentConfig, LayerConfig, MoeConfig, Multipliers,
        RouterConfig,
    };
    use crate::language_model::LanguageModel;
    use crate::parameters::{ParameterInfo, Role};
    use crate::testing::moe;

    /// The described GPT-4.
    fn described() -> ModelConfig {
        ModelConfig {
            vocab_size: 100_277,
            d_model: 10_752,
            heads: 168,
            kv_heads: 1,
            head_dim: 128,
            rotary_dim: 128,
            context_length: 8192,
            rope_theta: 10_000.0,
            rope_scaling: None,
            norm_epsilon: 1e-5,
            tied_embeddings: false,
            initializer_range: 0.02,
            multipliers: Multipliers::NONE,
            latent: None,
            qk_norm: QkNorm::None,
            attention_bias: AttentionBias::None,
            sinks: false,
            vision: None,
            layers: vec![LayerConfig::MOE; 120],
            moe: Some(MoeConfig {
                experts: ExpertsConfig {
                    count: 16,
                    top_k: 2,
                    d_ff: 28_672,
                    activation: ExpertActivation::Swiglu,
                    biases: false,
                    shared_d_ff: 0,
                    shared_gate: false,
                },
                router: RouterConfig::DEFAULT,
            }),
        }
    }

    fn three_digits(value: f64) -> String {
        format!("{value:.2e}")
    }

    #[test]
    fn the_described_model_has_the_described_numbers() {
        let accounting = Accounting::of(&described());
        let operations = accounting.operations;
        assert_eq!(
            three_digits(accounting.expert_parameters_all_layers as f64),
            "1.11e11"
        );
        assert_eq!(
            three_digits(accounting.parameters.attention as f64),
            "5.58e10"
        );
        assert_eq!(three_digits(accounting.total as f64), "1.83e12");
        assert_eq!(three_digits(accounting.active as f64), "2.79e11");
        assert_eq!(three_digits(operations.forward), "5.58e11");
        assert_eq!(three_digits(operations.forward_every_expert), "3.67e12");
        assert_eq!(three_digits(operations.attention_scores), "4.23e10");
        assert_eq!(three_digits(operations.training * 13e12), "2.18e25");
    }

    #[test]
    fn a_small_model_counted_by_hand() {
        let mut config = ModelConfig {
            vocab_size: 10,
            layers: vec![LayerConfig::MOE; 2],
            d_model: 4,
            heads: 2,
            kv_heads: 1,
            head_dim: 6,
            rotary_dim: 6,
            context_length: 8,
            ..described()
        };
        moe(&mut config).experts = ExpertsConfig {
            count: 3,
            top_k: 2,
            d_ff: 5,
            activation: ExpertActivation::Swiglu,
            biases: false,
            shared_d_ff: 0,
            shared_gate: false,
        };
        let accounting = Accounting::of(&config);
        let expected = Parameters {
            embedding: 10 * 4,
            attention: 2 * (12 * 4 + 6 * 4 + 6 * 4 + 4 * 12),
            router: 2 * 3 * 4,
            feed_forward: 2 * 3 * (3 * 4 * 5),
            norms: 2 * (4 + 4) + 4,
            biases: 0,
            head: 10 * 4,
            cross_attention: 0,
            tower: 0,
            projector: 0,
        };
        assert_eq!(accounting.parameters, expected);
        assert_eq!(accounting.total, 40 + 288 + 24 + 360 + 20 + 40);
        // One row of the embedding, and two of three experts.
        assert_eq!(accounting.active, 4 + 288 + 24 + 240 + 20 + 40);
        assert_eq!(
            accounting.operations.forward,
            2.0 * (288 + 24 + 240 + 40) as f64
        );
        assert_eq!(
            accounting.operations.attention_scores,
            (2 * 2 * 2 * 12 * 8 / 2) as f64
        );
        assert_eq!(accounting.memory.total(), 16 * accounting.total);
        // Of 8 positions, with a window of 2 all but the first half position see two.
        config.layers[1].attention = AttentionKind::Window(2);
        assert_eq!(
            Accounting::of(&config).operations.attention_scores,
            2.0 * 2.0 * 12.0 * (4.0 + 1.75)
        );
    }

    #[test]
    fn norms_of_queries_and_keys_and_dense_layers_are_counted() {
        let plain = ModelConfig {
            layers: vec![LayerConfig::MOE; 3],
            d_model: 8,
            heads: 4,
            kv_heads: 2,
            head_dim: 6,
            ..described()
        };
        let count = |config: &ModelConfig| Accounting::of(config);
        for (qk_norm, expected) in [(QkNorm::Projection, 3 * (24 + 12)), (QkNorm::Head, 3 * 12)] {
            let normed = ModelConfig {
                qk_norm,
                ..plain.clone()
            };
            assert_eq!(count(&normed).total - count(&plain).total, expected);
        }
        let mut mixed = plain;
        mixed.layers[1] = LayerConfig::dense(10);
        let one = 2 * 3 * 8 * 28_672;
        let mixed = count(&mixed);
        assert_eq!(mixed.expert_parameters_all_layers, one);
        assert_eq!(mixed.parameters.feed_forward, 16 * one + 3 * 8 * 10);
        assert_eq!(mixed.parameters.router, 2 * 16 * 8);
        assert_eq!(mixed.total - mixed.active, 14 * one + (100_277 - 1) * 8);
    }

    #[test]
    fn the_count_equals_the_parameters_of_a_built_model() {
        let mut normed = ModelConfig {
            qk_norm: QkNorm::Head,
            attention_bias: AttentionBias::All,
            tied_embeddings: true,
            ..described()
        };
        for layer in [0, 7] {
            normed.layers[layer] = LayerConfig::dense(1000);
        }
        let mut shared = described();
        moe(&mut shared).experts.shared_d_ff = 3000;
        moe(&mut shared).experts.shared_gate = true;
        shared.attention_bias = AttentionBias::Qkv;
        shared.sinks = true;
        let latent = |query_rank| ModelConfig {
            kv_heads: 168,
            rotary_dim: 64,
            attention_bias: AttentionBias::All,
            latent: Some(LatentConfig {
                rank: 512,
                query_rank,
                value_dim: 100,
                interleaved: true,
            }),
            ..described()
        };
        let mut biased = described();
        moe(&mut biased).experts.biases = true;
        moe(&mut biased).router.logit_bias = true;
        for config in [
            described(),
            described().dense_baseline(),
            normed,
            shared.dense_baseline(),
            shared,
            biased,
            latent(None),
            latent(Some(1536)),
        ] {
            let built = LanguageModel::parameter_list(&config);
            let of = |roles: &[Role]| {
                let parameters = built.iter();
                let parameters = parameters.filter(|parameter| roles.contains(&parameter.role));
                parameters.map(ParameterInfo::elements).sum()
            };
            let expected = Parameters {
                embedding: of(&[Role::Embedding]),
                attention: of(&[Role::Attention]),
                router: of(&[Role::Router]),
                feed_forward: of(&[Role::FeedForward, Role::Experts, Role::SharedExperts]),
                norms: of(&[Role::Norm]),
                biases: of(&[Role::Bias, Role::RouterBias, Role::Sinks]),
                head: of(&[Role::Head]),
                cross_attention: 0,
                tower: 0,
                projector: 0,
            };
            assert_eq!(Parameters::of(&config), expected);
        }
    }

    #[test]
    fn biases_of_experts_that_are_not_selected_are_not_active() {
        let count = |biases, logit_bias| {
            let mut config = described();
            moe(&mut config).experts.biases = biases;
            moe(&mut config).router.logit_bias = logit_bias;
            let accounting = Accounting::of(&config);
            [accounting.total, accounting.active]
        };
        let [plain, of_experts, of_routers] = [(false, false), (true, false), (false, true)]
            .map(|(biases, logit_bias)| count(biases, logit_bias));
        let one = 120 * (2 * 28_672 + 10_752);
        let added = |to: [u128; 2]| [to[0] - plain[0], to[1] - plain[1]];
        assert_eq!(added(of_experts), [16 * one, 2 * one]);
        assert_eq!(added(of_routers), [120 * 16; 2]);
    }

    /// The published sizes: 671 billion parameters, of which a token passes 37 billion (without the table of embeddings).
    #[test]
    fn deepseek_v3_has_the_published_numbers() {
        let mut config = ModelConfig {
            vocab_size: 129_280,
            d_model: 7168,
            heads: 128,
            kv_heads: 128,
            head_dim: 192,
            rotary_dim: 64,
            context_length: 163_840,
            latent: Some(LatentConfig {
                rank: 512,
                query_rank: Some(1536),
                value_dim: 128,
                interleaved: true,
            }),
            layers: vec![LayerConfig::MOE; 61],
            ..described()
        };
        config.layers[..3].fill(LayerConfig::dense(18_432));
        let experts = &mut moe(&mut config).experts;
        (experts.count, experts.top_k, experts.d_ff) = (256, 8, 2048);
        experts.shared_d_ff = 2048;
        let accounting = Accounting::of(&config);
        assert_eq!(accounting.total / 1_000_000_000, 671);
        assert_eq!(three_digits(accounting.active as f64), "3.66e10");
        // 576 values a token and layer, where heads of their own would take 40,960.
        let cached = crate::cache::CacheShape::from(&config).token_bytes();
        assert_eq!(cached, 61 * 576 * 4);
    }

    #[test]
    fn the_dense_baseline_costs_as_much_as_the_selected_experts() {
        let (sparse, dense) = (
            Accounting::of(&described()),
            Accounting::of(&described().dense_baseline()),
        );
        assert_eq!(sparse.active - sparse.parameters.router, dense.active);
        assert_eq!(
            dense.operations.forward,
            dense.operations.forward_every_expert
        );
        assert_eq!(
            dense.parameters.feed_forward,
            2 * sparse.expert_parameters_all_layers
        );
    }

    #[test]
    fn a_tied_head_has_no_parameters_but_the_same_operations() {
        let (untied, tied) = (
            described(),
            ModelConfig {
                tied_embeddings: true,
                ..described()
            },
        );
        let (untied, tied) = (Accounting::of(&untied), Accounting::of(&tied));
        assert_eq!(untied.total - tied.total, untied.parameters.head);
        assert_eq!(untied.operations, tied.operations);
    }
}
