//! The keys of a configuration, as files have them: `[model]` of a run, and `model` in Firebox's own config.json.
//!
//! Each key is declared here, with its default where it has one; [`ModelKeys::resolve`] makes a [`ModelConfig`] of them
//! and [`ModelKeys::of`] writes one back.

mod resolve;
#[cfg(test)]
mod tests;
mod written;

use serde::{Deserialize, Serialize};

use super::{AttentionBias, BalanceKind, QkNorm, RouterConfig, Scores};

/// Declares a table of optional keys; what is absent is not written.
macro_rules! keys {
    ($(#[$table:meta])* $name:ident { $($(#[$doc:meta])* $key:ident: $kind:ty,)* }) => {
        $(#[$table])*
        #[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default, expecting = "a table")]
        pub struct $name {
            $($(#[$doc])* #[serde(skip_serializing_if = "Option::is_none")] pub $key: Option<$kind>,)*
        }
    };
}

keys! {
    /// `[model]`
    ModelKeys {
        /// Number of token ids. Only with a checkpoint to start from; else that of the tokenizer.
        vocab_size: usize,
        /// Number of transformer blocks.
        layers: usize,
        /// Width of the residual stream.
        d_model: usize,
        /// Query heads.
        heads: usize,
        /// Key/value heads; 1 by default, and with latent attention as many as query heads.
        kv_heads: usize,
        /// Width of one head; `d_model / heads` by default.
        head_dim: usize,
        /// Longest sequence, in tokens.
        context_length: usize,
        /// Values of a head that are rotated, its first ones; all by default.
        rotary_dim: usize,
        /// Base of the rotary embedding's frequencies; 10,000 by default.
        rope_theta: f64,
        /// Added to the mean square in RMSNorm; 1e-5 by default.
        norm_epsilon: f64,
        /// Whether the output head is the transposed embedding; false by default.
        tied_embeddings: bool,
        /// Standard deviation of the initial weights; 0.02 by default.
        initializer_range: f64,
        /// Norms of queries and keys; none by default.
        qk_norm: QkNorm,
        /// Biases of the projections of attention; none by default.
        attention_bias: AttentionBias,
        /// Whether each query head has a learned score without a key; false by default.
        sinks: bool,
        /// The attention of each layer, repeated over the layers; full by default.
        attention: Vec<AttentionName>,
        /// Positions that a layer with a window attends to.
        window: usize,
        /// The feed-forward of the layers; a mixture by default.
        feed_forward: FeedForwardName,
        /// Latents that queries, keys and values are made of; none by default.
        latent: LatentKeys,
        /// Scaling of the rotary frequencies; none by default.
        rope_scaling: RopeScalingKeys,
        /// Constant factors within the network; none by default.
        multipliers: MultipliersKeys,
        /// Dense feed-forwards.
        dense: DenseKeys,
        /// The experts of a mixture.
        experts: ExpertsKeys,
        /// The routers of a mixture.
        router: RouterKeys,
        /// A vision tower, and layers that attend to pictures; none by default.
        vision: VisionKeys,
    }
}

keys! {
    /// `[model.vision]`: adds a tower and layers that attend to pictures to the text model that the other keys describe; see
    /// [`VisionConfig`](super::VisionConfig).
    VisionKeys {
        /// Indices of the layers that attend to pictures, from 1, in ascending order: where they stand among all layers, those
        /// of the text model and these.
        cross_attention_layers: Vec<usize>,
        /// Hidden width of their SwiGLU; by default that of the text model's dense layers, or the active width of its experts.
        cross_d_ff: usize,
        /// Width of the tower.
        width: usize,
        /// Hidden width of the tower's feed-forwards; four times its width by default.
        d_ff: usize,
        /// Heads of the tower's attention.
        heads: usize,
        /// Layers of the tower's first encoder.
        layers: usize,
        /// Layers of the tower's second encoder, whose branches have gates; 0 by default.
        global_layers: usize,
        /// Side of a tile, in pixels.
        tile_size: usize,
        /// Side of a patch, in pixels.
        patch_size: usize,
        /// The most tiles of a picture; 1 by default.
        max_tiles: usize,
        /// The arrangements of tiles, each rows and columns; by default all of at most `max_tiles` tiles, by rows and then by
        /// columns.
        aspect_ratios: Vec<[usize; 2]>,
        /// The layers of the first encoder whose states are part of the output; the last one by default.
        intermediate_layers: Vec<usize>,
        /// Added to the variance in the norms of the tower's layers; 1e-5 by default.
        norm_epsilon: f64,
        /// Standard deviation of the tower's initial weights; that of the text model by default.
        initializer_range: f64,
    }
}

/// A word of [`ModelKeys::attention`]; see [`AttentionKind`](super::AttentionKind).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AttentionName {
    /// All positions up to its own.
    Full,
    /// The last [`window`](ModelKeys::window) positions.
    Window,
    /// All positions up to its own, without rotary positions.
    Nope,
}

/// The kind of feed-forward of all layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeedForwardName {
    /// Mixture of experts, but for the layers that [`DenseKeys`] lists.
    Moe,
    /// One SwiGLU in every layer, of width `dense.d_ff`. Without that key, the model is the iso-FLOP baseline of the
    /// mixture that `[model.experts]` describes: of width `experts.d_ff × experts.top_k + experts.shared_d_ff`.
    Dense,
}

keys! {
    /// `[model.dense]`
    DenseKeys {
        /// Indices of the dense layers of a model with a mixture, from 0, in ascending order.
        layers: Vec<usize>,
        /// Hidden width of their SwiGLU, or of that of every layer of a dense model; the active width of the experts by
        /// default.
        d_ff: usize,
    }
}

keys! {
    /// `[model.experts]`
    ExpertsKeys {
        /// Number of experts per layer.
        count: usize,
        /// Number of experts per token.
        top_k: usize,
        /// Hidden width of one expert's SwiGLU.
        d_ff: usize,
        /// Its activation; "swiglu" by default.
        activation: ActivationName,
        /// Where values are clamped ("clamped-swiglu"); 7 by default.
        limit: f64,
        /// Factor within the sigmoid ("clamped-swiglu"); 1.702 by default.
        alpha: f64,
        /// Whether each expert adds biases to its products; false by default.
        biases: bool,
        /// Hidden width of the shared experts' SwiGLU; 0, none, by default.
        shared_d_ff: usize,
        /// Whether the output of the shared experts is multiplied by a learned gate; false by default.
        shared_gate: bool,
    }
}

/// A word of `activation` in [`ExpertsKeys`]; see [`ExpertActivation`](super::ExpertActivation).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActivationName {
    /// That of most families.
    Swiglu,
    /// That of gpt-oss.
    ClampedSwiglu,
}

keys! {
    /// `[model.router]`; the defaults are [`RouterConfig::DEFAULT`].
    RouterKeys {
        /// Whether a learned bias is added to the logits.
        logit_bias: bool,
        /// How the logits become scores.
        scores: Scores,
        /// Whether the weights of a token's experts are divided by their sum.
        normalize: bool,
        /// Factor of these weights.
        scaling: f64,
        /// Number of groups of experts.
        groups: usize,
        /// Number of groups that a token's experts are selected from.
        top_groups: usize,
        /// The load-balancing loss, or quantile balancing.
        balance: BalanceKind,
        /// Coefficient of the loss; by default 0 with quantile balancing.
        balance_coefficient: f64,
        /// Coefficient of the router z-loss.
        z_coefficient: f64,
        /// Step of the selection bias; 0 turns bias balancing off.
        bias_update_rate: f64,
    }
}

keys! {
    /// `[model.latent]`; see [`LatentConfig`](super::LatentConfig).
    LatentKeys {
        /// Width of the latent of keys and values.
        rank: usize,
        /// Width of the latent of queries; none by default.
        query_rank: usize,
        /// Values of a head's value; by default those of a key that are not rotated.
        value_dim: usize,
        /// Whether neighbours turn together; true by default.
        interleaved: bool,
    }
}

keys! {
    /// `[model.multipliers]`; see [`Multipliers`](super::Multipliers).
    MultipliersKeys {
        /// Factor of the embeddings; 1 by default.
        embedding: f64,
        /// Factor of what attention and feed-forward add to the residual stream; 1 by default.
        residual: f64,
        /// Factor of attention's scores; 1/√head_dim by default.
        attention: f64,
        /// Divisor of the logits; 1 by default.
        logits_divisor: f64,
    }
}

keys! {
    /// `[model.rope_scaling]`; see [`RopeScaling`](super::RopeScaling).
    RopeScalingKeys {
        /// Which scaling.
        kind: RopeScalingName,
        /// Divisor of frequencies.
        factor: f64,
        /// Context of the pretraining, in tokens ("llama3", "yarn").
        original_context: usize,
        /// Frequencies of fewer rotations are divided ("llama3").
        low_freq_factor: f64,
        /// Frequencies of more rotations stay as they are ("llama3").
        high_freq_factor: f64,
        /// Frequencies of more rotations stay as they are ("yarn"); 32 by default.
        beta_fast: f64,
        /// Frequencies of fewer rotations are divided ("yarn"); 1 by default.
        beta_slow: f64,
        /// Factor of rotated queries and keys ("yarn"); `0.1 · ln(factor) + 1` by default.
        attention_factor: f64,
        /// Whether the indices between which frequencies are mixed are rounded outwards ("yarn"); true by default.
        truncate: bool,
        /// The scores of latent attention are multiplied by `(0.1 · mscale_all_dim · ln(factor) + 1)²` ("yarn"); 0 by default.
        mscale_all_dim: f64,
    }
}

/// A word of [`RopeScalingKeys::kind`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RopeScalingName {
    /// Position interpolation.
    Linear,
    /// That of Llama 3.1.
    Llama3,
    /// YaRN.
    Yarn,
}

impl RouterConfig {
    /// What absent keys of `[model.router]` mean.
    pub const DEFAULT: Self = Self {
        logit_bias: false,
        scores: Scores::Softmax,
        normalize: true,
        scaling: 1.0,
        groups: 1,
        top_groups: 1,
        balance: BalanceKind::PerLayer,
        balance_coefficient: 0.01,
        z_coefficient: 0.001,
        bias_update_rate: 0.0,
    };
}
