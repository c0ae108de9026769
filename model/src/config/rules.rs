//! The rules that a configuration must keep, whatever it was read from.

use super::{
    AttentionKind, BalanceKind, ExpertActivation, ExpertsConfig, FeedForwardKind, ModelConfig,
    MoeConfig, Multipliers, RopeScaling, RouterConfig,
};

/// The largest allowed size; it keeps products of sizes within the range of their types.
pub const LARGEST_SIZE: usize = 1 << 24;

/// The largest allowed number of layers.
pub const MOST_LAYERS: usize = 1 << 16;

/// What is wrong with a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}{} {rule}", value.as_ref().map(|value| format!(" = {value}")).unwrap_or_default())]
pub struct ConfigError {
    /// The key's path below `[model]`, such as `experts.top_k`.
    pub key: &'static str,
    /// Its value, where it has one.
    pub value: Option<String>,
    /// What is allowed; the rest of a sentence that begins with key and value.
    pub rule: String,
    /// What to do about it; `None` where a key is missing.
    pub hint: Option<String>,
}

impl ConfigError {
    /// A key without a default.
    pub(super) fn missing(key: &'static str) -> Self {
        Self {
            key,
            value: None,
            rule: "is missing".to_owned(),
            hint: None,
        }
    }

    /// A key that decides nothing beside the others.
    pub(super) fn without_effect(key: &'static str, condition: &str, hint: &str) -> Self {
        Self {
            key,
            value: None,
            rule: format!("has no effect {condition}"),
            hint: Some(hint.to_owned()),
        }
    }
}

impl ModelConfig {
    /// Checks every rule, within and across fields.
    ///
    /// # Errors
    ///
    /// The first violated rule, with the key, its value, what is allowed, and a hint.
    pub fn validate(&self) -> Result<(), ConfigError> {
        size("vocab_size", self.vocab_size)?;
        check_layers(self.layers.len())?;
        let sizes: [(&'static str, usize); 5] = [
            ("d_model", self.d_model),
            ("heads", self.heads),
            ("kv_heads", self.kv_heads),
            ("head_dim", self.head_dim),
            ("context_length", self.context_length),
        ];
        for (key, value) in sizes {
            size(key, value)?;
        }
        self.validate_heads()?;
        self.validate_layers()?;
        self.validate_vision()?;
        self.multipliers.validate()?;
        require(
            self.vision.is_none() || self.multipliers == Multipliers::NONE,
            "multipliers",
            "a table",
            "is not allowed in a model that sees pictures: no layer that attends to them has such factors",
            "remove it, or [model.vision]",
        )?;
        require(
            self.vision.is_none() || self.latent.is_none(),
            "latent",
            "a table",
            "is not allowed in a model that sees pictures: no layer that attends to them has latents",
            "remove it, or [model.vision]",
        )?;
        if let Some(moe) = &self.moe {
            moe.validate()?;
        }
        if let Some(latent) = &self.latent {
            latent.validate(self)?;
        }
        if let Some(scaling) = &self.rope_scaling {
            scaling.validate()?;
            let of_latent = matches!(scaling, RopeScaling::Yarn { mscale_all_dim, .. } if *mscale_all_dim != 0.0);
            if of_latent && self.latent.is_none() {
                return Err(ConfigError::without_effect(
                    "rope_scaling.mscale_all_dim",
                    "without [model.latent]",
                    "remove it",
                ));
            }
            let yarn = matches!(scaling, RopeScaling::Yarn { .. });
            require(
                !yarn || self.rope_theta > 1.0,
                "rope_theta",
                self.rope_theta,
                "must be above 1 with YaRN",
                "10000 is common",
            )?;
        }
        for (key, value) in [
            ("rope_theta", self.rope_theta),
            ("norm_epsilon", self.norm_epsilon),
            ("initializer_range", self.initializer_range),
        ] {
            finite(key, value, true)?;
        }
        Ok(())
    }

    fn validate_heads(&self) -> Result<(), ConfigError> {
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
        let (rotary_dim, head_dim) = (self.rotary_dim, self.head_dim);
        require(
            head_dim.is_multiple_of(2),
            "head_dim",
            head_dim,
            "must be even, because the rotary embedding rotates pairs of values",
            format!(
                "use {} or {}",
                head_dim.saturating_sub(1).max(2),
                head_dim + 1
            ),
        )?;
        require(
            rotary_dim.is_multiple_of(2) && (2..=head_dim).contains(&rotary_dim),
            "rotary_dim",
            rotary_dim,
            format!("must be an even number from 2 to head_dim = {head_dim}"),
            "half of head_dim is common; attention = [\"nope\"] rotates nothing",
        )
    }

    fn validate_layers(&self) -> Result<(), ConfigError> {
        for layer in &self.layers {
            if let AttentionKind::Window(window) = layer.attention {
                require(
                    (1..=LARGEST_SIZE).contains(&window),
                    "window",
                    window,
                    format!("must lie between 1 and {LARGEST_SIZE}"),
                    "the number of positions that a token attends to, its own among them",
                )?;
            }
            if let FeedForwardKind::Dense { d_ff } = layer.feed_forward {
                size("dense.d_ff", d_ff)?;
            }
        }
        match (self.moe_layers().next(), &self.moe) {
            (Some(_), None) => Err(ConfigError::missing("experts")),
            (None, Some(_)) => Err(ConfigError::without_effect(
                "experts",
                "without an MoE layer",
                "make a layer MoE, or leave the mixture out",
            )),
            _ => Ok(()),
        }
    }
}

impl MoeConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let (experts, router) = (&self.experts, &self.router);
        size("experts.count", experts.count)?;
        size("experts.d_ff", experts.d_ff)?;
        require(
            (1..=experts.count).contains(&experts.top_k),
            "experts.top_k",
            experts.top_k,
            format!("must lie between 1 and experts.count = {}", experts.count),
            "2 of 8 and 2 of 16 are common; top_k = count selects all experts",
        )?;
        require(
            experts.shared_d_ff <= LARGEST_SIZE,
            "experts.shared_d_ff",
            experts.shared_d_ff,
            format!("must be at most {LARGEST_SIZE}"),
            "0 means no shared experts",
        )?;
        if experts.shared_gate && experts.shared_d_ff == 0 {
            return Err(ConfigError::without_effect(
                "experts.shared_gate",
                "without shared experts",
                "set experts.shared_d_ff, or remove it",
            ));
        }
        if let ExpertActivation::ClampedSwiglu { alpha, limit } = experts.activation {
            finite("experts.alpha", alpha, true)?;
            finite("experts.limit", limit, true)?;
        }
        self.validate_groups()?;
        require(
            (1e-6..=1e6).contains(&router.scaling),
            "router.scaling",
            format!("{:?}", router.scaling),
            "must lie between 0.000001 and 1000000",
            "2.5 is that of DeepSeek-V3",
        )?;
        for (key, value) in [
            ("router.balance_coefficient", router.balance_coefficient),
            ("router.z_coefficient", router.z_coefficient),
            ("router.bias_update_rate", router.bias_update_rate),
        ] {
            finite(key, value, false)?;
        }
        if router.balance == BalanceKind::Quantile {
            self.validate_quantile()?;
        }
        Ok(())
    }

    fn validate_quantile(&self) -> Result<(), ConfigError> {
        let router = &self.router;
        require(
            router.groups == 1,
            "router.groups",
            router.groups,
            "must be 1 with router.balance = \"quantile\": whether a token selects an expert then depends on the other experts \
             of its group too",
            "balance = \"per-layer\" with a bias_update_rate balances groups",
        )?;
        for (key, value) in [
            ("router.balance_coefficient", router.balance_coefficient),
            ("router.bias_update_rate", router.bias_update_rate),
        ] {
            require(
                value == 0.0,
                key,
                format!("{value:?}"),
                "must be 0 with router.balance = \"quantile\", which has neither a loss nor a rate",
                "remove it, or choose another balance",
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
}

/// Checks a number of layers, before so many are made.
pub(super) fn check_layers(layers: usize) -> Result<(), ConfigError> {
    require(
        (1..=MOST_LAYERS).contains(&layers),
        "layers",
        layers,
        format!("must lie between 1 and {MOST_LAYERS}"),
        "models have some dozens of layers",
    )
}

pub(super) fn size(key: &'static str, value: usize) -> Result<(), ConfigError> {
    require(
        (1..=LARGEST_SIZE).contains(&value),
        key,
        value,
        format!("must lie between 1 and {LARGEST_SIZE}"),
        "sizes above 2²⁴ are not supported",
    )
}

pub(super) fn finite(key: &'static str, value: f64, above_zero: bool) -> Result<(), ConfigError> {
    // The network computes in f32, whose range is smaller.
    let computed = value as f32;
    let allowed = computed.is_finite() && value >= 0.0 && !(above_zero && computed == 0.0);
    let rule = match above_zero {
        true => "must be above 0 and finite in f32",
        false => "must be 0 or above, and finite in f32",
    };
    let hint = "omit the key to use its default";
    require(allowed, key, format!("{value:?}"), rule, hint)
}

pub(super) fn require(
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
        value: Some(value.to_string()),
        rule: rule.into(),
        hint: Some(hint.into()),
    })
}

fn divisors(n: usize) -> impl Iterator<Item = usize> {
    (1..=n).filter(move |d| n.is_multiple_of(*d))
}

fn listed(values: impl Iterator<Item = usize>) -> String {
    let all: Vec<String> = values.map(|value| value.to_string()).collect();
    all.join(", ")
}
