//! The metadata of a model, as llama.cpp reads it.

use super::architecture::Architecture;
use super::block::BlockType;
use super::keys::{self, SIGMOID};
use super::value::Value;
use crate::Notes;
use crate::families::RouterKind;
use firebox_model::config::{
    FeedForwardKind, LatentConfig, ModelConfig, MoeConfig, Multipliers, RopeScaling,
};
use firebox_model::rope::yarn_length;

/// Keys and values, in the order in which they are written.
struct Metadata {
    architecture: Architecture,
    all: Vec<(String, Value)>,
}

/// What llama.cpp needs to know of a model whose tensors are mostly of this type, besides its tokenizer.
pub(super) fn metadata(
    model: &ModelConfig,
    architecture: &Architecture,
    kind: BlockType,
    notes: &Notes,
) -> Vec<(String, Value)> {
    let mut metadata = Metadata {
        architecture: *architecture,
        all: vec![
            (
                keys::ARCHITECTURE.to_owned(),
                Value::text(architecture.name),
            ),
            ("general.type".to_owned(), Value::text("model")),
            (
                "general.file_type".to_owned(),
                Value::size(kind.file_type()),
            ),
        ],
    };
    if kind == BlockType::Q8 {
        let version = ("general.quantization_version".to_owned(), Value::size(2));
        metadata.all.push(version);
    }
    metadata.add_sizes(model);
    metadata.add_positions(model);
    metadata.add_windows(model);
    metadata.add_multipliers(model);
    if let Some(moe) = &model.moe {
        metadata.add_experts(moe, model.dense_layers().count());
    }
    if notes.document_mask() {
        let mask = (keys::DOCUMENT_MASK.to_owned(), Value::flag(true));
        metadata.all.push(mask);
    }
    metadata.all
}

impl Metadata {
    fn add(&mut self, key: &str, value: Value) {
        let key = format!("{}.{key}", self.architecture.name);
        self.all.push((key, value));
    }

    fn add_sizes(&mut self, model: &ModelConfig) {
        let dense = model
            .layers
            .iter()
            .find_map(|layer| match layer.feed_forward {
                FeedForwardKind::Dense { d_ff } => Some(d_ff),
                FeedForwardKind::Moe => None,
            });
        let experts = model.moe.as_ref().map(|moe| &moe.experts);
        let of_experts = experts.map(|experts| match self.architecture.expert_width {
            true => experts.active_d_ff(),
            false => experts.d_ff,
        });
        self.add(keys::VOCABULARY, Value::size(model.vocab_size));
        self.add(keys::CONTEXT, Value::size(model.context_length));
        self.add(keys::WIDTH, Value::size(model.d_model));
        self.add(keys::LAYERS, Value::size(model.layers.len()));
        self.add(keys::D_FF, Value::size(dense.or(of_experts).unwrap_or(0)));
        self.add(keys::HEADS, Value::size(model.heads));
        match model.latent {
            None => {
                self.add(keys::KV_HEADS, Value::size(model.kv_heads));
                self.add(keys::KEY_WIDTH, Value::size(model.head_dim));
                self.add(keys::VALUE_WIDTH, Value::size(model.head_dim));
            }
            Some(latent) => self.add_latents(latent, model),
        }
        self.add(keys::EPSILON, Value::single(model.norm_epsilon));
    }

    /// All heads share one key and one value, of which each makes its own.
    fn add_latents(&mut self, latent: LatentConfig, model: &ModelConfig) {
        let query_rank = latent.query_rank.unwrap_or(0);
        self.add(keys::KV_HEADS, Value::size(1));
        self.add(keys::KEY_WIDTH, Value::size(latent.rank + model.rotary_dim));
        self.add(keys::VALUE_WIDTH, Value::size(latent.rank));
        self.add(keys::LATENT_KEY_WIDTH, Value::size(model.head_dim));
        self.add(keys::LATENT_VALUE_WIDTH, Value::size(latent.value_dim));
        self.add(keys::RANK, Value::size(latent.rank));
        self.add(keys::QUERY_RANK, Value::size(query_rank));
    }

    fn add_positions(&mut self, model: &ModelConfig) {
        self.add(keys::ROTARY, Value::size(model.rotary_dim));
        self.add(keys::ROPE_BASE, Value::single(model.rope_theta));
        match model.rope_scaling {
            None => {}
            Some(RopeScaling::Linear { factor }) => {
                self.add(keys::SCALING, Value::text("linear"));
                self.add(keys::SCALING_FACTOR, Value::single(factor));
            }
            // Its divisors are a tensor.
            Some(RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_context,
            }) => {
                let numbers = [
                    ("factor", Value::single(factor)),
                    ("low_freq_factor", Value::single(low_freq_factor)),
                    ("high_freq_factor", Value::single(high_freq_factor)),
                    ("original_context", Value::size(original_context)),
                ];
                let numbers =
                    numbers.map(|(key, value)| (format!("{}.{key}", keys::LLAMA3), value));
                self.all.extend(numbers);
            }
            Some(RopeScaling::Yarn {
                factor,
                original_context,
                beta_fast,
                beta_slow,
                attention_factor,
                mscale_all_dim,
                ..
            }) => {
                self.add(keys::SCALING, Value::text("yarn"));
                self.add(keys::SCALING_FACTOR, Value::single(factor));
                self.add(keys::ORIGINAL_CONTEXT, Value::size(original_context));
                self.add(keys::BETA_FAST, Value::single(beta_fast));
                self.add(keys::BETA_SLOW, Value::single(beta_slow));
                if mscale_all_dim != 0.0 {
                    // llama.cpp takes it for the number of rotated queries and keys as well, which are as long as before then.
                    let multiplier = keys::LOG_MULTIPLIER_UNIT * mscale_all_dim;
                    self.add(keys::LOG_MULTIPLIER, Value::single(multiplier));
                } else if let Some(attention_factor) = attention_factor {
                    // llama.cpp multiplies the usual factor by it.
                    let further = attention_factor / yarn_length(factor, 1.0);
                    self.add(keys::ATTENTION_FACTOR, Value::single(further));
                }
            }
        }
    }

    fn add_windows(&mut self, model: &ModelConfig) {
        if !self.architecture.windows {
            return;
        }
        let windows = || model.layers.iter().map(|layer| layer.attention.window());
        let Some(window) = windows().flatten().next() else {
            // llama.cpp stops the process where no layer has one; one as long as the context hides nothing.
            self.add(keys::WINDOW, Value::size(model.context_length));
            return;
        };
        self.add(keys::WINDOW, Value::size(window));
        let is_usual = windows()
            .enumerate()
            .all(|(layer, window)| window.is_some() == layer.is_multiple_of(2));
        if !is_usual {
            let pattern = windows().map(|window| window.is_some());
            self.add(keys::WINDOW_PATTERN, Value::flags(pattern));
        }
    }

    fn add_multipliers(&mut self, model: &ModelConfig) {
        let has_some = |family: &crate::families::Family| family.multipliers;
        if !self.architecture.families.iter().any(has_some) {
            return;
        }
        let factors = &model.multipliers;
        let usual = Multipliers::usual_attention(model.head_dim);
        let attention = factors.attention.unwrap_or(usual);
        self.add(keys::EMBEDDING_SCALE, Value::single(factors.embedding));
        self.add(keys::RESIDUAL_SCALE, Value::single(factors.residual));
        self.add(keys::ATTENTION_SCALE, Value::single(attention));
        self.add(keys::LOGIT_SCALE, Value::single(factors.logits_divisor));
    }

    fn add_experts(&mut self, MoeConfig { experts, router }: &MoeConfig, dense_layers: usize) {
        self.add(keys::EXPERTS, Value::size(experts.count));
        self.add(keys::TOP_K, Value::size(experts.top_k));
        if self.architecture.expert_width {
            self.add(keys::EXPERT_D_FF, Value::size(experts.d_ff));
        }
        match self.architecture.families[0].router {
            RouterKind::Softmax | RouterKind::GptOss => {}
            RouterKind::Qwen2Moe => {
                self.add(keys::SHARED_D_FF, Value::size(experts.shared_d_ff));
            }
            RouterKind::DeepSeekV3 => {
                let shared = experts.shared_d_ff / experts.d_ff;
                self.add(keys::SHARED, Value::size(shared));
                self.add(keys::DENSE_LAYERS, Value::size(dense_layers));
                self.add(keys::WEIGHT_SCALE, Value::single(router.scaling));
                self.add(keys::WEIGHT_NORM, Value::flag(router.normalize));
                self.add(keys::GATING, Value::size(SIGMOID));
                // Groups of which all are chosen limit nothing, and llama.cpp does not read them.
                if router.top_groups < router.groups {
                    self.add(keys::GROUPS, Value::size(router.groups));
                    self.add(keys::TOP_GROUPS, Value::size(router.top_groups));
                }
            }
        }
    }
}
