//! The families of checkpoints, as data: one file per family says what it computes, the names of its tensors, and how
//! it uses each field of config.json.

mod common;
mod deepseek_v3;
mod defaults;
mod dots1;
mod field;
mod firebox;
mod glm4_moe;
mod gpt_oss;
mod granite_moe;
mod llama;
mod mistral;
mod mixtral;
mod mllama;
mod olmoe;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_moe;
mod smollm3;

pub(crate) use common::rule;
pub use common::{EMBEDDING, HEAD};
pub use deepseek_v3::DEEPSEEK_V3;
pub use defaults::Defaults;
pub use dots1::DOTS1;
pub use field::{Field, Usage};
pub use firebox::{FIREBOX, ROUTER_BIAS};
pub use glm4_moe::GLM4_MOE;
pub use gpt_oss::GPT_OSS;
pub use granite_moe::GRANITE_MOE;
pub use llama::LLAMA;
pub use mistral::MISTRAL;
pub use mixtral::MIXTRAL;
pub use mllama::{CROSS_LAYERS, DEFAULT_RATIOS, FIREBOX_VISION, MLLAMA, TEXT_TYPE, TOWER_TYPE};
pub use olmoe::OLMOE;
pub use qwen2::QWEN2;
pub use qwen2_moe::QWEN2_MOE;
pub use qwen3::QWEN3;
pub use qwen3_moe::QWEN3_MOE;
pub use smollm3::SMOLLM3;

use serde_json::{Value, json};

use super::layout::{Rule, find};
use firebox_model::config::{
    AttentionBias, AttentionKind, ExpertActivation, FeedForwardName, ModelConfig, MoeConfig,
    Multipliers, QkNorm, Scores,
};

/// A family of checkpoints.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Family {
    /// `architectures` in config.json.
    pub architecture: &'static str,
    /// `model_type` in config.json.
    pub model_type: &'static str,
    /// Norm of queries and keys.
    pub qk_norm: QkNorm,
    /// The field that turns this norm on, where it is not on always.
    pub qk_norm_switch: Option<&'static str>,
    /// Biases of attention.
    pub bias: Bias,
    /// Whether attention has sinks.
    pub sinks: bool,
    /// Which layers may attend to a window.
    pub windows: Windows,
    /// Whether a part of each head may be rotated (`partial_rotary_factor`).
    pub partial_rotary: bool,
    /// Whether layers may have no rotary positions (`no_rope_layers`).
    pub nope: bool,
    /// Whether its attention is latent.
    pub latent: bool,
    /// Whether it has constant factors of embedding, residual branches, scores and logits (`embedding_multiplier`,
    /// `residual_multiplier`, `attention_multiplier`, `logits_scaling`).
    pub multipliers: bool,
    /// What follows attention.
    pub feed_forward: FeedForwardName,
    /// Whether the chosen experts' weights are divided by their sum.
    pub normalize: Normalize,
    /// How its routers score and select.
    pub router: RouterKind,
    /// Which layers of a mixture may be dense.
    pub dense_layers: DenseLayers,
    /// Whether it sees pictures: it has a tower and layers that attend to it, and its config.json has a table of its own for
    /// the text and one for the tower.
    pub vision: bool,
    /// The fields that the number of experts is written to: one, or both of its spellings. Either is read.
    pub experts: &'static [&'static str],
    /// The field with the width of an expert, or of the dense feed-forward of a dense family.
    pub d_ff: &'static str,
    /// What absent fields mean.
    pub defaults: Defaults,
    /// Every field of config.json that the family has, in groups that families share; with a tower, those of `text_config`.
    fields: &'static [&'static [Field]],
    /// Where each parameter lies, in groups that families share.
    rules: &'static [&'static [Rule]],
}

/// Whether the chosen experts' weights are divided by their sum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Normalize {
    /// They are.
    Always,
    /// As `norm_topk_prob` says, and not where it is absent.
    AsConfigured,
}

/// How a family's routers score and select experts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RouterKind {
    /// The largest softmax probabilities.
    Softmax,
    /// The same with a shared expert, whose width is a field of its own and whose output has a learned gate.
    Qwen2Moe,
    /// Without shared experts, with biases of the logits, which are parameters; and experts with biases and clamped activations.
    GptOss,
    /// DeepSeek-V3's: sigmoid scores, a selection bias that is part of the checkpoint, groups of experts, a scaling factor,
    /// and shared experts whose width is a multiple of an expert's.
    DeepSeekV3,
}

impl RouterKind {
    /// Whether this is what the configuration computes.
    fn computes(self, MoeConfig { experts, router }: &MoeConfig, biased: bool) -> bool {
        let clamped = experts.activation != ExpertActivation::Swiglu;
        let of_gpt_oss = [clamped, experts.biases, router.logit_bias];
        let shared = (experts.shared_d_ff > 0, experts.shared_gate);
        let softmax = (router.groups, router.scaling) == (1, 1.0)
            && router.scores == Scores::Softmax
            && !biased;
        match self {
            Self::Softmax => softmax && of_gpt_oss == [false; 3] && !shared.0,
            Self::Qwen2Moe => softmax && of_gpt_oss == [false; 3] && shared == (true, true),
            Self::GptOss => softmax && of_gpt_oss == [true; 3] && !shared.0,
            Self::DeepSeekV3 => {
                of_gpt_oss == [false; 3]
                    && router.scores == Scores::Sigmoid
                    && shared == (true, false)
                    && experts.shared_d_ff.is_multiple_of(experts.d_ff)
            }
        }
    }
}

/// Which layers of a mixture may be dense in a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DenseLayers {
    /// None.
    None,
    /// Any (`mlp_only_layers`, `decoder_sparse_step`).
    Any,
    /// The first ones (`first_k_dense_replace`).
    First,
}

impl DenseLayers {
    /// Whether these may be the dense layers.
    fn allow(self, dense: &[usize]) -> bool {
        match self {
            Self::None => dense.is_empty(),
            Self::Any => true,
            Self::First => dense.iter().copied().eq(0..dense.len()),
        }
    }
}

/// Which projections of attention add a bias in a family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    /// None.
    None,
    /// Queries, keys and values.
    Qkv,
    /// All or none, as `attention_bias` says.
    AsConfigured,
    /// Queries, keys and values or none, as `attention_bias` says; none where it is absent.
    QkvAsConfigured,
    /// Queries, keys and values or none, as `qkv_bias` says.
    QkvBias,
}

impl Bias {
    /// Whether these may be the biases.
    fn allow(self, bias: AttentionBias) -> bool {
        match self {
            Self::None => bias == AttentionBias::None,
            Self::Qkv => bias == AttentionBias::Qkv,
            Self::AsConfigured => bias != AttentionBias::Qkv,
            Self::QkvAsConfigured | Self::QkvBias => bias != AttentionBias::All,
        }
    }
}

/// Which layers of a family may attend to a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Windows {
    /// None.
    None,
    /// All of them (`sliding_window`, and `use_sliding_window` where a family has it).
    All,
    /// Each by itself (`layer_types`), or those from `max_window_layers` on.
    ByLayer,
    /// Each by itself (`layer_types`), or every other layer from the first one on, but none from `max_window_layers` on.
    EvenBelow,
    /// Each by itself (`layer_types`), or every other layer from the first one on.
    Alternating,
}

impl Windows {
    /// Whether these may be the windows of the layers.
    fn allow(self, config: &ModelConfig) -> bool {
        let kinds = || config.layers.iter().map(|layer| layer.attention);
        let mut windows = kinds().filter_map(AttentionKind::window);
        let Some(window) = windows.next() else {
            return true;
        };
        match self {
            Self::None => false,
            Self::All => kinds().all(|kind| kind == AttentionKind::Window(window)),
            Self::ByLayer | Self::EvenBelow | Self::Alternating => {
                let allowed = [AttentionKind::Full, AttentionKind::Window(window)];
                kinds().all(|kind| allowed.contains(&kind))
            }
        }
    }
}

impl Family {
    /// All of them.
    pub const ALL: [Self; 17] = [
        LLAMA,
        MISTRAL,
        QWEN2,
        QWEN3,
        SMOLLM3,
        MIXTRAL,
        OLMOE,
        QWEN3_MOE,
        QWEN2_MOE,
        GRANITE_MOE,
        DOTS1,
        GLM4_MOE,
        DEEPSEEK_V3,
        GPT_OSS,
        MLLAMA,
        FIREBOX_VISION,
        FIREBOX,
    ];

    /// Whether its checkpoints may have a selection bias for each router.
    pub fn has_selection_bias(&self) -> bool {
        *self == FIREBOX || self.router == RouterKind::DeepSeekV3
    }

    /// Whether a `quantization_config` says that the experts are in MXFP4, in a family that has them so.
    pub(super) fn is_packed(&self, quantization: &Value) -> bool {
        *self == GPT_OSS && quantization.get("quant_method") == Some(&json!("mxfp4"))
    }

    /// The family that computes what this model computes; `biased` when a router has a selection bias.
    pub fn of(config: &ModelConfig, biased: bool) -> Self {
        let has_nope = config
            .layers
            .iter()
            .any(|layer| layer.attention == AttentionKind::Nope);
        let even = config.heads * config.head_dim == config.d_model;
        let text = config.text_only();
        let computes = |family: &Self| {
            *family != FIREBOX
                && family.vision == config.vision.is_some()
                && (!family.vision || mllama::computes(config))
                && family.allows_qk_norm(config.qk_norm)
                && family.sinks == config.sinks
                && family.latent == config.latent.is_some()
                && (family.latent
                    || family.partial_rotary
                    || config.rotary_dim == config.head_dim)
                && family.bias.allow(config.attention_bias)
                && family.windows.allow(&text)
                && (family.nope || !has_nope)
                && (family.multipliers || config.multipliers == Multipliers::NONE)
                && family.has_feed_forwards(config, biased)
                // Its norm is as wide as the residual stream.
                && (family.qk_norm != QkNorm::Projection || even)
        };
        Self::ALL.into_iter().find(computes).unwrap_or(FIREBOX)
    }

    /// Whether files may hold layers behind the last one, which predict further tokens (arXiv 2412.19437, section 2.2) and
    /// which generation does without.
    pub fn predicts_further(&self) -> bool {
        self.usage("num_nextn_predict_layers").is_some()
    }

    fn allows_qk_norm(&self, qk_norm: QkNorm) -> bool {
        qk_norm == self.qk_norm || self.qk_norm_switch.is_some() && qk_norm == QkNorm::None
    }

    /// Whether it has these feed-forwards; `biased` when a router has a selection bias.
    fn has_feed_forwards(&self, config: &ModelConfig, biased: bool) -> bool {
        let (dense, widths): (Vec<usize>, Vec<usize>) = config.dense_layers().unzip();
        if widths.iter().any(|width| *width != widths[0]) {
            return false;
        }
        let Some(moe) = &config.moe else {
            return self.feed_forward == FeedForwardName::Dense;
        };
        let biased = biased || moe.router.balances_by_bias();
        self.feed_forward == FeedForwardName::Moe
            && (self.normalize == Normalize::AsConfigured || moe.router.normalize)
            && self.router.computes(moe, biased)
            && self.dense_layers.allow(&dense)
    }

    /// What the top of the config.json of a family with a tower makes of a field.
    pub(super) fn top_usage(field: &str) -> Option<Usage> {
        usage_among(mllama::TOP_FIELDS, field)
    }

    /// What `vision_config` makes of a field.
    pub(super) fn tower_usage(field: &str) -> Option<Usage> {
        usage_among(mllama::TOWER_FIELDS, field)
    }

    /// The fields of config.json that the family has.
    pub fn fields(&self) -> impl Iterator<Item = &'static Field> + use<> {
        self.fields.iter().copied().flatten()
    }

    /// How the family uses a field of config.json; `None` when it has no such field.
    pub fn usage(&self, field: &str) -> Option<Usage> {
        let mut fields = self.fields();
        Some(fields.find(|known| known.name == field)?.usage)
    }

    /// `model_type` of each family that has a field.
    pub(super) fn having(field: &str) -> Vec<&'static str> {
        let having = Self::ALL
            .into_iter()
            .filter(|family| family.usage(field).is_some());
        having.map(|family| family.model_type).collect()
    }

    /// The rule for a parameter's path, and its layer where it has one; `None` when the family has no such
    /// parameter.
    pub fn rule(&self, path: &str) -> Option<(Rule, Option<usize>)> {
        find(self.rules, path)
    }
}

fn usage_among(groups: &[&[Field]], field: &str) -> Option<Usage> {
    let mut fields = groups.iter().copied().flatten();
    Some(fields.find(|known| known.name == field)?.usage)
}
