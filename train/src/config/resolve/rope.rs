//! Resolves `[model.rope_scaling]`.

use firebox_model::config::RopeScaling;

use super::{Checked, without_effect};
use crate::config::error::Problem;
use crate::config::raw::{RawRopeScaling, RopeScalingKind};

/// The scaling that the keys describe; a key of another kind is an error.
pub(super) fn rope_scaling(raw: RawRopeScaling) -> Checked<RopeScaling> {
    let kind = raw.kind;
    let key = |name: &str| format!("model.rope_scaling.{name}");
    let foreign = [
        (
            "low_freq_factor",
            RopeScalingKind::Llama3,
            raw.low_freq_factor.is_some(),
        ),
        (
            "high_freq_factor",
            RopeScalingKind::Llama3,
            raw.high_freq_factor.is_some(),
        ),
        ("beta_fast", RopeScalingKind::Yarn, raw.beta_fast.is_some()),
        ("beta_slow", RopeScalingKind::Yarn, raw.beta_slow.is_some()),
        (
            "attention_factor",
            RopeScalingKind::Yarn,
            raw.attention_factor.is_some(),
        ),
        ("truncate", RopeScalingKind::Yarn, raw.truncate.is_some()),
    ];
    for (name, of, written) in foreign {
        if written && of != kind {
            let condition = format!("unless model.rope_scaling.kind = \"{}\"", of.name());
            return Err(without_effect(key(name), &condition).hint("remove it"));
        }
    }
    if kind == RopeScalingKind::Linear && raw.original_context.is_some() {
        return Err(without_effect(
            key("original_context"),
            "with model.rope_scaling.kind = \"linear\"",
        )
        .hint("remove it"));
    }
    let number = |name: &str, value: Option<f64>| value.ok_or_else(|| Problem::missing(key(name)));
    let factor = number("factor", raw.factor)?;
    let original_context = raw
        .original_context
        .ok_or_else(|| Problem::missing(key("original_context")));
    Ok(match kind {
        RopeScalingKind::Linear => RopeScaling::Linear { factor },
        RopeScalingKind::Llama3 => RopeScaling::Llama3 {
            factor,
            low_freq_factor: number("low_freq_factor", raw.low_freq_factor)?,
            high_freq_factor: number("high_freq_factor", raw.high_freq_factor)?,
            original_context: original_context?,
        },
        RopeScalingKind::Yarn => RopeScaling::Yarn {
            factor,
            original_context: original_context?,
            beta_fast: raw.beta_fast.unwrap_or(32.0),
            beta_slow: raw.beta_slow.unwrap_or(1.0),
            attention_factor: raw.attention_factor,
            truncate: raw.truncate.unwrap_or(true),
        },
    })
}
