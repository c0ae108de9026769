//! From keys to a configuration.

use super::{
    ActivationName, AttentionName, ExpertsKeys, FeedForwardName, LatentKeys, ModelKeys,
    MultipliersKeys, RopeScalingKeys, RopeScalingName, RouterKeys, VisionKeys,
};
use crate::config::rules::{check_layers, require};
use crate::config::vision::CROSS_LAYERS;
use crate::config::{
    AttentionKind, BalanceKind, ConfigError, ExpertActivation, ExpertsConfig, FeedForwardKind,
    LARGEST_SIZE, LatentConfig, LayerConfig, ModelConfig, MoeConfig, Multipliers, RopeScaling,
    RouterConfig, VisionConfig,
};

type Checked<T> = Result<T, ConfigError>;

fn needed<T>(key: &'static str, value: Option<T>) -> Checked<T> {
    value.ok_or_else(|| ConfigError::missing(key))
}

impl ModelKeys {
    /// The configuration that the keys describe, with every default filled in and every rule checked.
    ///
    /// # Errors
    ///
    /// The first key that is missing, has no effect, or violates a rule.
    pub fn resolve(&self) -> Result<ModelConfig, ConfigError> {
        let layers = needed("layers", self.layers)?;
        let d_model = needed("d_model", self.d_model)?;
        let heads = needed("heads", self.heads)?;
        let context_length = needed("context_length", self.context_length)?;
        let vocab_size = needed("vocab_size", self.vocab_size)?;
        check_layers(layers)?;
        let head_dim = self.head_dim(d_model, heads)?;
        let rotary_dim = self.rotary_dim.unwrap_or(head_dim);
        let latent = match &self.latent {
            None => None,
            Some(keys) => Some(keys.resolve(head_dim.saturating_sub(rotary_dim))?),
        };
        let kv_heads = if latent.is_some() { heads } else { 1 };
        let model = ModelConfig {
            vocab_size,
            d_model,
            heads,
            kv_heads: self.kv_heads.unwrap_or(kv_heads),
            head_dim,
            context_length,
            rotary_dim,
            rope_theta: self.rope_theta.unwrap_or(10_000.0),
            rope_scaling: match &self.rope_scaling {
                None => None,
                Some(keys) => Some(keys.resolve()?),
            },
            norm_epsilon: self.norm_epsilon.unwrap_or(1e-5),
            tied_embeddings: self.tied_embeddings.unwrap_or(false),
            initializer_range: self.initializer_range.unwrap_or(0.02),
            multipliers: match &self.multipliers {
                None => Multipliers::NONE,
                Some(keys) => keys.resolve(),
            },
            latent,
            qk_norm: self.qk_norm.unwrap_or_default(),
            attention_bias: self.attention_bias.unwrap_or_default(),
            sinks: self.sinks.unwrap_or(false),
            layers: Vec::new(),
            moe: None,
            vision: None,
        };
        let attention = self.attention_pattern(layers)?;
        let (feed_forwards, moe) = self.feed_forwards(layers)?;
        let layer = |(layer, feed_forward)| LayerConfig {
            attention: attention[layer % attention.len()],
            feed_forward,
        };
        let model = ModelConfig {
            layers: feed_forwards.into_iter().enumerate().map(layer).collect(),
            moe,
            ..model
        };
        model.validate()?;
        match &self.vision {
            None => Ok(model),
            Some(keys) => keys.add_to(&model),
        }
    }

    fn head_dim(&self, d_model: usize, heads: usize) -> Checked<usize> {
        require(
            (1..=LARGEST_SIZE).contains(&heads),
            "heads",
            heads,
            format!("must lie between 1 and {LARGEST_SIZE}"),
            "sizes above 2²⁴ are not supported",
        )?;
        if let Some(head_dim) = self.head_dim {
            return Ok(head_dim);
        }
        require(
            d_model.is_multiple_of(heads),
            "heads",
            heads,
            format!("must divide model.d_model = {d_model}, because model.head_dim is not set"),
            "set model.head_dim, or change one of the two",
        )?;
        Ok(d_model / heads)
    }

    /// The attention of the first layers, which is repeated over the others.
    fn attention_pattern(&self, layers: usize) -> Checked<Vec<AttentionKind>> {
        let names = self.attention.as_deref().unwrap_or(&[AttentionName::Full]);
        if names.is_empty() {
            return Err(ConfigError {
                key: "attention",
                value: None,
                rule: "must have at least one word".to_owned(),
                hint: Some("[\"window\", \"full\"] alternates between the two".to_owned()),
            });
        }
        if names.len() > layers {
            return Err(ConfigError {
                key: "attention",
                value: None,
                rule: format!("must have at most model.layers = {layers} words"),
                hint: Some("the words are repeated over the layers".to_owned()),
            });
        }
        if self.window.is_some() && !names.contains(&AttentionName::Window) {
            return Err(ConfigError::without_effect(
                "window",
                "unless model.attention contains \"window\"",
                "attention = [\"window\"] gives every layer a window",
            ));
        }
        let kind = |name: &AttentionName| {
            Ok(match name {
                AttentionName::Full => AttentionKind::Full,
                AttentionName::Window => AttentionKind::Window(needed("window", self.window)?),
                AttentionName::Nope => AttentionKind::Nope,
            })
        };
        names.iter().map(kind).collect()
    }

    fn feed_forwards(&self, layers: usize) -> Checked<(Vec<FeedForwardKind>, Option<MoeConfig>)> {
        let dense = self.dense.as_ref();
        let d_ff = dense.and_then(|dense| dense.d_ff);
        if self.feed_forward == Some(FeedForwardName::Dense) {
            if dense.is_some_and(|dense| dense.layers.is_some()) {
                return Err(ConfigError::without_effect(
                    "dense.layers",
                    "with model.feed_forward = \"dense\"",
                    "remove it, or set feed_forward = \"moe\"",
                ));
            }
            let d_ff = match (d_ff, &self.experts) {
                (Some(d_ff), _) => d_ff,
                (None, Some(experts)) => experts.resolve()?.active_d_ff(),
                (None, None) => return Err(ConfigError::missing("dense.d_ff")),
            };
            return Ok((vec![FeedForwardKind::Dense { d_ff }; layers], None));
        }
        let experts = needed("experts", self.experts.as_ref())?.resolve()?;
        let mut kinds = vec![FeedForwardKind::Moe; layers];
        if let Some(dense) = dense {
            let d_ff = d_ff.unwrap_or_else(|| experts.active_d_ff());
            let listed = needed("dense.layers", dense.layers.as_deref())?;
            check_dense(listed, layers)?;
            for &layer in listed {
                kinds[layer] = FeedForwardKind::Dense { d_ff };
            }
        }
        let router = self.router.clone().unwrap_or_default();
        let moe = MoeConfig {
            experts,
            router: router.resolve(),
        };
        Ok((kinds, Some(moe)))
    }
}

fn check_dense(dense: &[usize], layers: usize) -> Checked<()> {
    let listed = format!("{dense:?}");
    require(
        dense.is_sorted_by(|a, b| a < b) && dense.iter().all(|&layer| layer < layers),
        "dense.layers",
        &listed,
        format!(
            "must be layer indices from 0 to {} in ascending order",
            layers - 1
        ),
        "[0] makes the first layer dense",
    )?;
    require(
        (1..layers).contains(&dense.len()),
        "dense.layers",
        &listed,
        "must name at least one layer, but not all",
        "omit [model.dense] to make every layer MoE, or set feed_forward = \"dense\" to make every layer dense",
    )
}

impl ExpertsKeys {
    /// The experts, whose sizes are not checked yet.
    fn resolve(&self) -> Checked<ExpertsConfig> {
        Ok(ExpertsConfig {
            count: needed("experts.count", self.count)?,
            top_k: needed("experts.top_k", self.top_k)?,
            d_ff: needed("experts.d_ff", self.d_ff)?,
            activation: self.activation()?,
            biases: self.biases.unwrap_or(false),
            shared_d_ff: self.shared_d_ff.unwrap_or(0),
            shared_gate: self.shared_gate.unwrap_or(false),
        })
    }

    fn activation(&self) -> Checked<ExpertActivation> {
        if self.activation == Some(ActivationName::ClampedSwiglu) {
            return Ok(ExpertActivation::ClampedSwiglu {
                alpha: self.alpha.unwrap_or(ExpertActivation::ALPHA),
                limit: self.limit.unwrap_or(ExpertActivation::LIMIT),
            });
        }
        for (key, written) in [
            ("experts.limit", self.limit.is_some()),
            ("experts.alpha", self.alpha.is_some()),
        ] {
            if written {
                let condition = "unless model.experts.activation = \"clamped-swiglu\"";
                return Err(ConfigError::without_effect(key, condition, "remove it"));
            }
        }
        Ok(ExpertActivation::Swiglu)
    }
}

impl LatentKeys {
    /// The latents, whose sizes are not checked yet, of a model with heads of so many values that are not rotated.
    fn resolve(&self, plain_dim: usize) -> Checked<LatentConfig> {
        Ok(LatentConfig {
            rank: needed("latent.rank", self.rank)?,
            query_rank: self.query_rank,
            value_dim: self.value_dim.unwrap_or(plain_dim),
            interleaved: self.interleaved.unwrap_or(true),
        })
    }
}

impl MultipliersKeys {
    /// The factors, which are not checked yet; absent keys are those of [`Multipliers::NONE`].
    fn resolve(&self) -> Multipliers {
        let absent = Multipliers::NONE;
        Multipliers {
            embedding: self.embedding.unwrap_or(absent.embedding),
            residual: self.residual.unwrap_or(absent.residual),
            attention: self.attention,
            logits_divisor: self.logits_divisor.unwrap_or(absent.logits_divisor),
        }
    }
}

impl RouterKeys {
    /// The router; absent keys are those of [`RouterConfig::DEFAULT`].
    pub fn resolve(&self) -> RouterConfig {
        let absent = RouterConfig::DEFAULT;
        let balance = self.balance.unwrap_or(absent.balance);
        let coefficient = match balance {
            BalanceKind::PerLayer | BalanceKind::Pooled => absent.balance_coefficient,
            BalanceKind::Quantile => 0.0,
        };
        RouterConfig {
            logit_bias: self.logit_bias.unwrap_or(absent.logit_bias),
            scores: self.scores.unwrap_or(absent.scores),
            normalize: self.normalize.unwrap_or(absent.normalize),
            scaling: self.scaling.unwrap_or(absent.scaling),
            groups: self.groups.unwrap_or(absent.groups),
            top_groups: self.top_groups.unwrap_or(absent.top_groups),
            balance,
            balance_coefficient: self.balance_coefficient.unwrap_or(coefficient),
            z_coefficient: self.z_coefficient.unwrap_or(absent.z_coefficient),
            bias_update_rate: self.bias_update_rate.unwrap_or(absent.bias_update_rate),
        }
    }
}

impl VisionKeys {
    /// A text model with the tower and the layers that the keys describe.
    ///
    /// # Errors
    ///
    /// The first key that is missing or violates a rule.
    pub fn add_to(&self, text: &ModelConfig) -> Checked<ModelConfig> {
        let layers = needed("vision.layers", self.layers)?;
        let width = needed("vision.width", self.width)?;
        let max_tiles = self.max_tiles.unwrap_or(1);
        check_layers(layers)?;
        let vision = VisionConfig {
            width,
            d_ff: self.d_ff.unwrap_or(width.saturating_mul(4)),
            heads: needed("vision.heads", self.heads)?,
            layers,
            global_layers: self.global_layers.unwrap_or(0),
            tile_size: needed("vision.tile_size", self.tile_size)?,
            patch_size: needed("vision.patch_size", self.patch_size)?,
            max_tiles,
            aspect_ratios: match &self.aspect_ratios {
                Some(ratios) => ratios.clone(),
                None => arrangements(max_tiles),
            },
            intermediate_layers: match &self.intermediate_layers {
                Some(layers) => layers.clone(),
                None => vec![layers.saturating_sub(1)],
            },
            norm_epsilon: self.norm_epsilon.unwrap_or(1e-5),
            initializer_range: self.initializer_range.unwrap_or(text.initializer_range),
        };
        let listed = needed(CROSS_LAYERS, self.cross_attention_layers.as_deref())?;
        let of_text = text.dense_layers().map(|(_, d_ff)| d_ff).next();
        let of_experts = text.moe.as_ref().map(|moe| moe.experts.active_d_ff());
        let d_ff = self.cross_d_ff.or(of_experts).or(of_text);
        text.with_vision(vision, listed, needed("vision.cross_d_ff", d_ff)?)
    }
}

/// All arrangements of at most so many tiles: one row first, and within the rows of one number by columns. A configuration
/// with more tiles than are allowed is refused later.
fn arrangements(tiles: usize) -> Vec<[usize; 2]> {
    let tiles = tiles.min(1 << 10);
    let rows = (1..=tiles).flat_map(|rows| (1..=tiles / rows).map(move |columns| [rows, columns]));
    rows.collect()
}

impl RopeScalingKeys {
    fn resolve(&self) -> Checked<RopeScaling> {
        let kind = needed("rope_scaling.kind", self.kind)?;
        self.refuse_keys_of_other_kinds(kind)?;
        let factor = needed("rope_scaling.factor", self.factor)?;
        let context = needed("rope_scaling.original_context", self.original_context);
        Ok(match kind {
            RopeScalingName::Linear => RopeScaling::Linear { factor },
            RopeScalingName::Llama3 => RopeScaling::Llama3 {
                factor,
                low_freq_factor: needed("rope_scaling.low_freq_factor", self.low_freq_factor)?,
                high_freq_factor: needed("rope_scaling.high_freq_factor", self.high_freq_factor)?,
                original_context: context?,
            },
            RopeScalingName::Yarn => RopeScaling::Yarn {
                factor,
                original_context: context?,
                beta_fast: self.beta_fast.unwrap_or(32.0),
                beta_slow: self.beta_slow.unwrap_or(1.0),
                attention_factor: self.attention_factor,
                truncate: self.truncate.unwrap_or(true),
                mscale_all_dim: self.mscale_all_dim.unwrap_or(0.0),
            },
        })
    }

    fn refuse_keys_of_other_kinds(&self, kind: RopeScalingName) -> Checked<()> {
        use RopeScalingName::{Linear, Llama3, Yarn};
        let (llama3, yarn) = ("\"llama3\"", "\"yarn\"");
        let written = [
            (
                "rope_scaling.low_freq_factor",
                self.low_freq_factor.is_some(),
                kind == Llama3,
                llama3,
            ),
            (
                "rope_scaling.high_freq_factor",
                self.high_freq_factor.is_some(),
                kind == Llama3,
                llama3,
            ),
            (
                "rope_scaling.beta_fast",
                self.beta_fast.is_some(),
                kind == Yarn,
                yarn,
            ),
            (
                "rope_scaling.beta_slow",
                self.beta_slow.is_some(),
                kind == Yarn,
                yarn,
            ),
            (
                "rope_scaling.attention_factor",
                self.attention_factor.is_some(),
                kind == Yarn,
                yarn,
            ),
            (
                "rope_scaling.truncate",
                self.truncate.is_some(),
                kind == Yarn,
                yarn,
            ),
            (
                "rope_scaling.mscale_all_dim",
                self.mscale_all_dim.is_some(),
                kind == Yarn,
                yarn,
            ),
            (
                "rope_scaling.original_context",
                self.original_context.is_some(),
                kind != Linear,
                "\"llama3\" or \"yarn\"",
            ),
        ];
        for (key, written, in_use, kinds) in written {
            if written && !in_use {
                let condition = format!("unless model.rope_scaling.kind = {kinds}");
                return Err(ConfigError::without_effect(key, &condition, "remove it"));
            }
        }
        Ok(())
    }
}
