//! The model's configuration: shapes and constants, validated before a device is used.

mod rope_scaling;
#[cfg(test)]
mod tests;

use serde::{Deserialize, Serialize};

pub use rope_scaling::RopeScaling;

/// The shape of a decoder-only mixture-of-experts language model.
///
/// Field names are the keys of the `[model]` table of a run's configuration file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelConfig {
    /// Number of token ids, the end-of-text token included.
    pub vocab_size: usize,
    /// Number of transformer blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub d_model: usize,
    /// Query heads.
    pub heads: usize,
    /// Key/value heads; 1 is multi-query attention, `heads` is multi-head attention.
    pub kv_heads: usize,
    /// Width of one head; even, because the rotary embedding rotates pairs of values.
    pub head_dim: usize,
    /// Longest sequence, in tokens.
    pub context_length: usize,
    /// Base of the rotary embedding's frequencies.
    pub rope_theta: f64,
    /// Scaling of those frequencies, for contexts beyond those of pretraining.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rope_scaling: Option<RopeScaling>,
    /// Added to the mean square before the square root in RMSNorm.
    pub norm_epsilon: f64,
    /// Whether the output head is the transposed embedding.
    pub tied_embeddings: bool,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
    /// Norms of queries and keys.
    #[serde(default)]
    pub qk_norm: QkNorm,
    /// The kind of feed-forward of all layers.
    pub feed_forward: FeedForwardKind,
    /// Layers that are dense nevertheless, with their own width.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dense: Option<DenseConfig>,
    /// The experts of the MoE layers; also determines the width of the dense baseline.
    pub experts: ExpertsConfig,
    /// Routing and load balancing.
    pub router: RouterConfig,
}

/// The largest allowed size; it keeps products of sizes within the range of their types.
pub const LARGEST_SIZE: usize = 1 << 24;

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

/// `[model.dense]`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DenseConfig {
    /// Indices of the dense layers, from 0, in ascending order.
    pub layers: Vec<usize>,
    /// Hidden width of their SwiGLU.
    pub d_ff: usize,
}

/// The kind of feed-forward of all layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FeedForwardKind {
    /// Mixture of experts.
    Moe,
    /// The iso-FLOP dense baseline: one SwiGLU of width `experts.d_ff × experts.top_k + experts.shared_d_ff`, which
    /// needs as many FLOPs per token as the experts of an MoE layer.
    Dense,
}

/// `[model.experts]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertsConfig {
    /// Number of experts per layer (E).
    pub count: usize,
    /// Number of experts per token (k).
    pub top_k: usize,
    /// Hidden width of one expert's SwiGLU.
    pub d_ff: usize,
    /// Hidden width of the shared experts' SwiGLU, which every token passes through besides its own experts
    /// (DeepSeekMoE, arXiv 2401.06066); 0 without shared experts.
    pub shared_d_ff: usize,
}

/// `[model.router]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RouterConfig {
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
    /// Which load-balancing loss is reported, and added to the training loss if its coefficient is not zero.
    pub balance: BalanceKind,
    /// Coefficient of the load-balancing loss in the training loss.
    pub balance_coefficient: f64,
    /// Coefficient of the router z-loss in the training loss.
    pub z_coefficient: f64,
    /// Step of the selection bias after each optimizer step; 0 turns bias balancing off.
    pub bias_update_rate: f64,
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

/// A kind of load-balancing loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum BalanceKind {
    /// One loss per layer, 1 when balanced for every k; the training loss uses their mean.
    PerLayer,
    /// Hugging Face's `load_balancing_loss_func`: the tokens of all layers pooled, k when balanced.
    Pooled,
}

/// A rule that a [`ModelConfig`] violates.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} = {value}: {rule}")]
pub struct ConfigError {
    /// The key's path below `[model]`, such as `experts.top_k`.
    pub key: &'static str,
    /// Its value.
    pub value: String,
    /// What is allowed.
    pub rule: String,
    /// What to do about it.
    pub hint: String,
}

impl ModelConfig {
    /// Checks every rule, within and across fields.
    ///
    /// # Errors
    ///
    /// The first violated rule, with the key, its value, what is allowed, and a hint.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let sizes: [(&'static str, usize); 9] = [
            ("vocab_size", self.vocab_size),
            ("layers", self.layers),
            ("d_model", self.d_model),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("context_length", self.context_length),
            ("experts.count", self.experts.count),
            ("experts.d_ff", self.experts.d_ff),
        ];
        for (key, value) in sizes {
            require(
                (1..=LARGEST_SIZE).contains(&value),
                key,
                value,
                format!("must lie between 1 and {LARGEST_SIZE}"),
                "sizes above 2²⁴ are not supported",
            )?;
        }
        require(
            self.heads.is_multiple_of(self.kv_heads),
            "kv_heads",
            self.kv_heads,
            format!(
                "must divide heads = {} (all key/value heads serve the same number of query heads)",
                self.heads
            ),
            format!("allowed values: {}", listed(divisors(self.heads))),
        )?;
        require(
            self.head_dim.is_multiple_of(2),
            "head_dim",
            self.head_dim,
            "must be even, because the rotary embedding rotates pairs of values",
            format!(
                "use {} or {}",
                self.head_dim.saturating_sub(1).max(2),
                self.head_dim + 1
            ),
        )?;
        require(
            (1..=self.experts.count).contains(&self.experts.top_k),
            "experts.top_k",
            self.experts.top_k,
            format!(
                "must lie between 1 and experts.count = {}",
                self.experts.count
            ),
            "2 of 8 and 2 of 16 are common; top_k = count selects all experts",
        )?;
        require(
            self.experts.shared_d_ff <= LARGEST_SIZE,
            "experts.shared_d_ff",
            self.experts.shared_d_ff,
            format!("must be at most {LARGEST_SIZE}"),
            "0 means no shared experts",
        )?;
        self.validate_groups()?;
        if let Some(scaling) = &self.rope_scaling {
            scaling.validate()?;
            let yarn = matches!(scaling, RopeScaling::Yarn { .. });
            require(
                !yarn || self.rope_theta > 1.0,
                "rope_theta",
                self.rope_theta,
                "must be above 1 with YaRN",
                "10000 is common",
            )?;
        }
        if let Some(dense) = &self.dense {
            let listed = format!("{:?}", dense.layers);
            require(
                dense.layers.is_sorted_by(|a, b| a < b)
                    && dense.layers.iter().all(|&layer| layer < self.layers),
                "dense.layers",
                &listed,
                format!(
                    "must be layer indices from 0 to {} in ascending order",
                    self.layers - 1
                ),
                "[0] makes the first layer dense",
            )?;
            require(
                (1..self.layers).contains(&dense.layers.len()),
                "dense.layers",
                &listed,
                "must name at least one layer, but not all",
                "omit [model.dense] to make every layer MoE, or set feed_forward = \"dense\" to make every layer dense",
            )?;
            require(
                (1..=LARGEST_SIZE).contains(&dense.d_ff),
                "dense.d_ff",
                dense.d_ff,
                format!("must lie between 1 and {LARGEST_SIZE}"),
                "experts.d_ff × experts.top_k needs as many FLOPs as the selected experts",
            )?;
        }
        let scaling = self.router.scaling;
        require(
            (1e-6..=1e6).contains(&scaling),
            "router.scaling",
            format!("{scaling:?}"),
            "must lie between 0.000001 and 1000000",
            "2.5 is that of DeepSeek-V3",
        )?;
        let finite: [(&'static str, f64, bool); 6] = [
            ("rope_theta", self.rope_theta, true),
            ("norm_epsilon", self.norm_epsilon, true),
            ("initializer_range", self.initializer_range, true),
            (
                "router.balance_coefficient",
                self.router.balance_coefficient,
                false,
            ),
            ("router.z_coefficient", self.router.z_coefficient, false),
            (
                "router.bias_update_rate",
                self.router.bias_update_rate,
                false,
            ),
        ];
        for (key, value, above_zero) in finite {
            // The network computes in f32, whose range is smaller.
            let computed = value as f32;
            let allowed = computed.is_finite() && value >= 0.0 && !(above_zero && computed == 0.0);
            let rule = if above_zero {
                "must be above 0 and finite in f32"
            } else {
                "must be 0 or above, and finite in f32"
            };
            require(
                allowed,
                key,
                format!("{value:?}"),
                rule,
                "omit the key to use its default",
            )?;
        }
        Ok(())
    }

    fn validate_groups(&self) -> Result<(), ConfigError> {
        let RouterConfig {
            groups, top_groups, ..
        } = self.router;
        let ExpertsConfig { count, top_k, .. } = self.experts;
        let fits = groups == 1 || groups > 1 && count.is_multiple_of(groups) && count / groups >= 2;
        let allowed = divisors(count).filter(|groups| *groups == 1 || count / groups >= 2);
        require(
            fits,
            "router.groups",
            groups,
            format!("must divide experts.count = {count} into groups of two experts or more"),
            format!("allowed values: {}", listed(allowed)),
        )?;
        require(
            (1..=groups).contains(&top_groups),
            "router.top_groups",
            top_groups,
            format!("must lie between 1 and router.groups = {groups}"),
            "half of the groups is common",
        )?;
        require(
            top_groups * (count / groups) >= top_k,
            "router.top_groups",
            top_groups,
            format!(
                "must leave a choice of experts.top_k = {top_k} experts or more, and a group has {}",
                count / groups
            ),
            format!("use {} or more", top_k.div_ceil(count / groups)),
        )
    }

    /// Total hidden width of the feed-forward of a token: `d_ff × top_k` and the shared experts.
    pub fn active_d_ff(&self) -> usize {
        self.experts.d_ff * self.experts.top_k + self.experts.shared_d_ff
    }

    /// Hidden width of a layer's dense feed-forward; `None` for an MoE layer.
    pub fn dense_d_ff(&self, layer: usize) -> Option<usize> {
        match &self.dense {
            Some(dense) if dense.layers.contains(&layer) => Some(dense.d_ff),
            _ => (self.feed_forward == FeedForwardKind::Dense).then(|| self.active_d_ff()),
        }
    }

    /// The indices of the MoE layers, in order.
    pub fn moe_layers(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.layers).filter(|&layer| self.dense_d_ff(layer).is_none())
    }

    /// Initial standard deviation of the `2 · layers` projections whose outputs are added to the residual stream
    /// (GPT-2).
    pub fn residual_initializer_range(&self) -> f64 {
        self.initializer_range / ((2 * self.layers) as f64).sqrt()
    }

    /// The iso-FLOP dense baseline: the same model with dense feed-forwards of equal active FLOPs.
    pub fn dense_baseline(&self) -> Self {
        Self {
            feed_forward: FeedForwardKind::Dense,
            ..self.clone()
        }
    }
}

fn require(
    holds: bool,
    key: &'static str,
    value: impl ToString,
    rule: impl Into<String>,
    hint: impl Into<String>,
) -> Result<(), ConfigError> {
    if holds {
        return Ok(());
    }
    Err(ConfigError {
        key,
        value: value.to_string(),
        rule: rule.into(),
        hint: hint.into(),
    })
}

fn divisors(n: usize) -> impl Iterator<Item = usize> {
    (1..=n).filter(move |d| n.is_multiple_of(*d))
}

fn listed(values: impl Iterator<Item = usize>) -> String {
    let all: Vec<String> = values.map(|value| value.to_string()).collect();
    all.join(", ")
}
