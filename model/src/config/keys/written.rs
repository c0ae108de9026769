//! From a configuration to the keys that describe it.

use serde::{Serialize, Serializer};

use super::{
    ActivationName, AttentionName, DenseKeys, ExpertsKeys, FeedForwardName, LatentKeys, ModelKeys,
    MultipliersKeys, RopeScalingKeys, RopeScalingName, RouterKeys, VisionKeys,
};
use crate::config::{
    AttentionKind, ExpertActivation, ExpertsConfig, LayerConfig, ModelConfig, Multipliers,
    RopeScaling, RouterConfig, VisionConfig,
};

impl ModelKeys {
    /// The keys of a configuration, every default among them.
    ///
    /// # Panics
    ///
    /// When they cannot describe it: windows or dense layers of several widths.
    pub fn of(model: &ModelConfig) -> Self {
        if let Some(vision) = &model.vision {
            return Self {
                vision: Some(VisionKeys::of(model, vision)),
                ..Self::of(&model.text_only())
            };
        }
        let moe = model.moe.as_ref();
        Self {
            vocab_size: Some(model.vocab_size),
            layers: Some(model.layers.len()),
            d_model: Some(model.d_model),
            heads: Some(model.heads),
            kv_heads: Some(model.kv_heads),
            head_dim: Some(model.head_dim),
            context_length: Some(model.context_length),
            rotary_dim: Some(model.rotary_dim),
            rope_theta: Some(model.rope_theta),
            norm_epsilon: Some(model.norm_epsilon),
            tied_embeddings: Some(model.tied_embeddings),
            initializer_range: Some(model.initializer_range),
            qk_norm: Some(model.qk_norm),
            attention_bias: Some(model.attention_bias),
            sinks: Some(model.sinks),
            attention: Some(pattern(&model.layers)),
            window: only(
                model
                    .layers
                    .iter()
                    .filter_map(|layer| layer.attention.window()),
            ),
            feed_forward: Some(match moe {
                Some(_) => FeedForwardName::Moe,
                None => FeedForwardName::Dense,
            }),
            latent: model.latent.map(|latent| LatentKeys {
                rank: Some(latent.rank),
                query_rank: latent.query_rank,
                value_dim: Some(latent.value_dim),
                interleaved: Some(latent.interleaved),
            }),
            rope_scaling: model.rope_scaling.as_ref().map(RopeScalingKeys::of),
            multipliers: (model.multipliers != Multipliers::NONE)
                .then(|| MultipliersKeys::of(&model.multipliers)),
            dense: dense(model),
            experts: moe.map(|moe| ExpertsKeys::of(&moe.experts)),
            router: moe.map(|moe| RouterKeys::of(&moe.router)),
            vision: None,
        }
    }
}

impl VisionKeys {
    fn of(model: &ModelConfig, vision: &VisionConfig) -> Self {
        let cross = model.cross_layers();
        Self {
            cross_d_ff: only(
                model
                    .cross_layers()
                    .filter_map(|layer| model.dense_d_ff(layer)),
            ),
            cross_attention_layers: Some(cross.collect()),
            width: Some(vision.width),
            d_ff: Some(vision.d_ff),
            heads: Some(vision.heads),
            layers: Some(vision.layers),
            global_layers: Some(vision.global_layers),
            tile_size: Some(vision.tile_size),
            patch_size: Some(vision.patch_size),
            max_tiles: Some(vision.max_tiles),
            aspect_ratios: Some(vision.aspect_ratios.clone()),
            intermediate_layers: Some(vision.intermediate_layers.clone()),
            norm_epsilon: Some(vision.norm_epsilon),
            initializer_range: Some(vision.initializer_range),
        }
    }
}

/// Files have a configuration in the short form of [`ModelKeys`].
impl Serialize for ModelConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        ModelKeys::of(self).serialize(serializer)
    }
}

/// The shortest pattern whose repetition is the attention of all layers.
fn pattern(layers: &[LayerConfig]) -> Vec<AttentionName> {
    let name = |layer: &LayerConfig| match layer.attention {
        AttentionKind::Full => AttentionName::Full,
        AttentionKind::Window(_) => AttentionName::Window,
        AttentionKind::Nope => AttentionName::Nope,
        AttentionKind::Cross => {
            unreachable!("layers that attend to pictures are written by themselves")
        }
    };
    let names: Vec<AttentionName> = layers.iter().map(name).collect();
    let repeats = |period: &usize| names.iter().skip(*period).zip(&names).all(|(a, b)| a == b);
    let period = (1..=names.len()).find(repeats).unwrap_or(0);
    names[..period].to_vec()
}

/// The value that all of these are; `None` if there are none.
fn only(mut values: impl Iterator<Item = usize>) -> Option<usize> {
    let first = values.next()?;
    assert!(values.all(|other| other == first), "several widths");
    Some(first)
}

fn dense(model: &ModelConfig) -> Option<DenseKeys> {
    let listed = || model.dense_layers().map(|(layer, _)| layer);
    Some(DenseKeys {
        d_ff: Some(only(model.dense_layers().map(|(_, d_ff)| d_ff))?),
        layers: model.moe.as_ref().map(|_| listed().collect()),
    })
}

impl ExpertsKeys {
    fn of(experts: &ExpertsConfig) -> Self {
        let plain = Self {
            count: Some(experts.count),
            top_k: Some(experts.top_k),
            d_ff: Some(experts.d_ff),
            activation: Some(ActivationName::Swiglu),
            biases: Some(experts.biases),
            shared_d_ff: Some(experts.shared_d_ff),
            shared_gate: experts.shared_gate.then_some(true),
            ..Self::default()
        };
        match experts.activation {
            ExpertActivation::Swiglu => plain,
            ExpertActivation::ClampedSwiglu { alpha, limit } => Self {
                activation: Some(ActivationName::ClampedSwiglu),
                limit: Some(limit),
                alpha: Some(alpha),
                ..plain
            },
        }
    }
}

impl MultipliersKeys {
    fn of(multipliers: &Multipliers) -> Self {
        Self {
            embedding: Some(multipliers.embedding),
            residual: Some(multipliers.residual),
            attention: multipliers.attention,
            logits_divisor: Some(multipliers.logits_divisor),
        }
    }
}

impl RouterKeys {
    fn of(router: &RouterConfig) -> Self {
        Self {
            logit_bias: Some(router.logit_bias),
            scores: Some(router.scores),
            normalize: Some(router.normalize),
            scaling: Some(router.scaling),
            groups: Some(router.groups),
            top_groups: Some(router.top_groups),
            balance: Some(router.balance),
            balance_coefficient: Some(router.balance_coefficient),
            z_coefficient: Some(router.z_coefficient),
            bias_update_rate: Some(router.bias_update_rate),
        }
    }
}

impl RopeScalingKeys {
    fn of(scaling: &RopeScaling) -> Self {
        match *scaling {
            RopeScaling::Linear { factor } => Self {
                kind: Some(RopeScalingName::Linear),
                factor: Some(factor),
                ..Self::default()
            },
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            } => Self {
                kind: Some(RopeScalingName::Llama3),
                factor: Some(factor),
                original_context: Some(original_context),
                low_freq_factor: Some(low_freq_factor),
                high_freq_factor: Some(high_freq_factor),
                ..Self::default()
            },
            RopeScaling::Yarn {
                factor,
                original_context,
                beta_fast,
                beta_slow,
                attention_factor,
                truncate,
                mscale_all_dim,
            } => Self {
                kind: Some(RopeScalingName::Yarn),
                factor: Some(factor),
                original_context: Some(original_context),
                beta_fast: Some(beta_fast),
                beta_slow: Some(beta_slow),
                attention_factor,
                truncate: Some(truncate),
                mscale_all_dim: (mscale_all_dim != 0.0).then_some(mscale_all_dim),
                ..Self::default()
            },
        }
    }
}
