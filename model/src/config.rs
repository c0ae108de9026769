//! The model's configuration: shapes and constants, validated before a device is used.
//!
//! [`ModelConfig`] holds every layer by itself. Files have a short form of it, [`ModelKeys`]: the `[model]` table of a run
//! and the `model` of Firebox's own config.json.

mod keys;
mod latent;
mod multipliers;
mod rope_scaling;
mod rules;
#[cfg(test)]
mod tests;
mod vision;

use firebox_kernels::Activation;
use serde::{Deserialize, Serialize};

pub use keys::{
    ActivationName, AttentionName, DenseKeys, ExpertsKeys, FeedForwardName, LatentKeys, ModelKeys,
    MultipliersKeys, RopeScalingKeys, RopeScalingName, RouterKeys, VisionKeys,
};
pub use latent::LatentConfig;
pub use multipliers::Multipliers;
pub use rope_scaling::RopeScaling;
pub use rules::{ConfigError, LARGEST_SIZE, MOST_LAYERS};
pub use vision::{CHANNELS, IMAGE_ROWS, VisionConfig};

/// The shape of a decoder-only language model.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// Number of token ids, the end-of-text token included.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; 1 is multi-query attention, `heads` is multi-head attention.
    pub kv_heads: usize,
    /// Width of one head; even.
    pub head_dim: usize,
    /// Longest sequence, in tokens.
    pub context_length: usize,
    /// Values of a query's or key's head that are rotated, its first ones (with [`latent`](Self::latent) attention its last
    /// ones); even.
    pub rotary_dim: usize,
    /// Base of the rotary embedding's frequencies.
    pub rope_theta: f64,
    /// Scaling of those frequencies, for contexts beyond those of pretraining.
    pub rope_scaling: Option<RopeScaling>,
    /// Added to the mean square before the square root in RMSNorm.
    pub norm_epsilon: f64,
    /// Whether the output head is the transposed embedding.
    pub tied_embeddings: bool,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
    /// Constant factors of the embedding, of what layers add, of attention's scores, and of the logits.
    pub multipliers: Multipliers,
    /// Latents that queries, keys and values are made of; `None` for projections of the residual stream.
    pub latent: Option<LatentConfig>,
    /// Norms of queries and keys.
    pub qk_norm: QkNorm,
    /// Biases of the projections of attention.
    pub attention_bias: AttentionBias,
    /// Whether each query head has a learned score that takes part in its softmax without a key or a value, so that it can
    /// attend to nothing (attention sinks; gpt-oss, arXiv 2508.10925).
    pub sinks: bool,
    /// The transformer blocks, from the embedding to the head.
    pub layers: Vec<LayerConfig>,
    /// What the MoE layers have in common; `None` for a model without any.
    pub moe: Option<MoeConfig>,
    /// The tower that some of the layers attend to; `None` for a model of text alone.
    pub vision: Option<VisionConfig>,
}

/// One transformer block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerConfig {
    /// What its attention sees.
    pub attention: AttentionKind,
    /// What follows attention.
    pub feed_forward: FeedForwardKind,
}

/// What the attention of a layer sees, and whether it knows positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum AttentionKind {
    /// All positions up to its own.
    #[default]
    Full,
    /// The last so many positions, its own among them (Longformer, arXiv 2004.05150; Mistral, arXiv 2310.06825).
    Window(usize),
    /// All positions up to its own, without rotary positions (NoPE, arXiv 2305.19466).
    Nope,
    /// The pictures that a token sees, and no text: cross-attention to what [`ModelConfig::vision`] makes of them. A layer
    /// without pictures is passed over.
    Cross,
}

/// The feed-forward of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FeedForwardKind {
    /// Mixture of experts; see [`ModelConfig::moe`].
    Moe,
    /// One SwiGLU.
    Dense {
        /// Its hidden width.
        d_ff: usize,
    },
}

/// The mixture that is in every MoE layer of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct MoeConfig {
    /// The experts.
    pub experts: ExpertsConfig,
    /// Routing and load balancing.
    pub router: RouterConfig,
}

/// RMSNorm of queries and keys before the rotary embedding, which bounds the attention scores (arXiv 2302.05442,
/// section 2.1, there with LayerNorm).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QkNorm {
    /// No norm (Llama, Mixtral).
    #[default]
    None,
    /// Over all heads together, with one gain per value of the projection (OLMoE).
    Projection,
    /// Over each head separately, with gains that all heads share (Qwen3).
    Head,
}

/// Which projections of attention add a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttentionBias {
    /// None (Llama, Mixtral).
    #[default]
    None,
    /// Queries, keys and values (Qwen2).
    Qkv,
    /// These, and the output.
    All,
}

/// The experts of a mixture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ExpertsConfig {
    /// Number of experts per layer (E).
    pub count: usize,
    /// Number of experts per token (k).
    pub top_k: usize,
    /// Hidden width of one expert's SwiGLU.
    pub d_ff: usize,
    /// How each expert makes its hidden activations.
    pub activation: ExpertActivation,
    /// Whether each expert adds biases to its products.
    pub biases: bool,
    /// Hidden width of the shared experts' SwiGLU, which every token passes through besides its own experts
    /// (DeepSeekMoE, arXiv 2401.06066); 0 without shared experts.
    pub shared_d_ff: usize,
    /// Whether the output of the shared experts is multiplied by the sigmoid of a learned score of each token (Qwen1.5-MoE
    /// and Qwen2-MoE, arXiv 2407.10671).
    pub shared_gate: bool,
}

/// How an expert makes its hidden activations of the products with its gate and up matrices; see [`Activation`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum ExpertActivation {
    /// `silu(gate) ⊙ up`.
    #[default]
    Swiglu,
    /// The same with clamped values, one added to up, and a factor within the sigmoid (gpt-oss, arXiv 2508.10925).
    ClampedSwiglu {
        /// That factor.
        alpha: f64,
        /// The largest value of gate, and the largest magnitude of up.
        limit: f64,
    },
}

impl ExpertActivation {
    /// The factor within the sigmoid of gpt-oss.
    pub const ALPHA: f64 = 1.702;
    /// The limit of gpt-oss.
    pub const LIMIT: f64 = 7.0;
}

impl From<ExpertActivation> for Activation {
    fn from(activation: ExpertActivation) -> Self {
        match activation {
            ExpertActivation::Swiglu => Self::Swiglu,
            ExpertActivation::ClampedSwiglu { alpha, limit } => Self::ClampedSwiglu {
                alpha: alpha as f32,
                limit: limit as f32,
            },
        }
    }
}

/// The routing of a mixture, and how it is kept balanced.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RouterConfig {
    /// Whether a learned bias is added to the logits (gpt-oss). The selection bias is another thing: it is not learned by
    /// gradients, and decides the selection alone.
    pub logit_bias: bool,
    /// How the logits become scores.
    pub scores: Scores,
    /// Divide the selected experts' weights by their sum (Mixtral does).
    pub normalize: bool,
    /// Factor of the selected experts' weights, after the normalization.
    pub scaling: f64,
    /// Number of groups of equally many neighbouring experts; 1 puts no limit on the selection.
    pub groups: usize,
    /// Number of groups that a token's experts are selected from (DeepSeek-V3, arXiv 2412.19437, section 2.1.2).
    pub top_groups: usize,
    /// Which load-balancing loss is reported, and added to the training loss if its coefficient is not zero; or quantile
    /// balancing.
    pub balance: BalanceKind,
    /// Coefficient of the load-balancing loss in the training loss; 0 with quantile balancing.
    pub balance_coefficient: f64,
    /// Coefficient of the router z-loss in the training loss.
    pub z_coefficient: f64,
    /// Step of the selection bias after each optimizer step; 0 turns bias balancing off, as quantile balancing has to.
    pub bias_update_rate: f64,
}

impl RouterConfig {
    /// Whether training gives the routers selection biases.
    pub fn balances_by_bias(&self) -> bool {
        self.bias_update_rate > 0.0 || self.balance == BalanceKind::Quantile
    }
}

/// How a router's logits become the scores that experts are selected by and weighted with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scores {
    /// Softmax over all experts (Mixtral, Qwen3-MoE, OLMoE).
    #[default]
    Softmax,
    /// The sigmoid of each logit, so that experts do not compete for scores (DeepSeek-V3, arXiv 2412.19437, eq. 15).
    Sigmoid,
}

/// How the load of the experts is balanced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BalanceKind {
    /// By one loss per layer, 1 when balanced for every k; the training loss uses their mean.
    PerLayer,
    /// By Hugging Face's `load_balancing_loss_func`: the tokens of all layers pooled, k when balanced.
    Pooled,
    /// By selection biases that are set after each step to those with which its batch would have been balanced
    /// ([`BatchScores::balancing_biases`](crate::moe::quantile::BatchScores::balancing_biases)). The loss that is reported is
    /// that of each layer.
    Quantile,
}

impl LayerConfig {
    /// Full attention before a mixture.
    pub const MOE: Self = Self {
        attention: AttentionKind::Full,
        feed_forward: FeedForwardKind::Moe,
    };

    /// Full attention before a SwiGLU of this width.
    pub const fn dense(d_ff: usize) -> Self {
        Self {
            attention: AttentionKind::Full,
            feed_forward: FeedForwardKind::Dense { d_ff },
        }
    }
}

impl AttentionKind {
    /// How many positions a query sees at most, where that is limited.
    pub fn window(self) -> Option<usize> {
        match self {
            Self::Window(window) => Some(window),
            Self::Full | Self::Nope | Self::Cross => None,
        }
    }
}

impl ExpertsConfig {
    /// Total hidden width of the feed-forwards of a token: `d_ff × top_k` and the shared experts. Saturates, since sizes
    /// may not be checked yet.
    pub fn active_d_ff(&self) -> usize {
        let selected = self.d_ff.saturating_mul(self.top_k);
        selected.saturating_add(self.shared_d_ff)
    }
}

impl ModelConfig {
    /// Hidden width of a layer's dense feed-forward; `None` for an MoE layer.
    pub fn dense_d_ff(&self, layer: usize) -> Option<usize> {
        match self.layers[layer].feed_forward {
            FeedForwardKind::Moe => None,
            FeedForwardKind::Dense { d_ff } => Some(d_ff),
        }
    }

    /// The indices of the dense layers that attend to the text, in order, with the hidden widths of their SwiGLUs.
    pub fn dense_layers(&self) -> impl Iterator<Item = (usize, usize)> + '_ {
        let layers = (0..self.layers.len()).filter(|&layer| !self.layers[layer].is_cross());
        layers.filter_map(|layer| Some((layer, self.dense_d_ff(layer)?)))
    }

    /// The indices of the MoE layers, in order.
    pub fn moe_layers(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.layers.len()).filter(|&layer| self.dense_d_ff(layer).is_none())
    }

    /// Initial standard deviation of the `2 · layers` projections whose outputs are added to the residual stream
    /// (GPT-2).
    pub fn residual_initializer_range(&self) -> f64 {
        self.initializer_range / ((2 * self.layers.len()) as f64).sqrt()
    }

    /// The iso-FLOP dense baseline: the same model with a SwiGLU of equal active width in place of each mixture.
    pub fn dense_baseline(&self) -> Self {
        let mut dense = self.clone();
        if let Some(moe) = dense.moe.take() {
            let d_ff = moe.experts.active_d_ff();
            for layer in &mut dense.layers {
                if layer.feed_forward == FeedForwardKind::Moe {
                    layer.feed_forward = FeedForwardKind::Dense { d_ff };
                }
            }
        }
        dense
    }
}
