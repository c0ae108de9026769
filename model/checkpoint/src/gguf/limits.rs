//! What llama.cpp would compute otherwise than Firebox, or not at all: refused before anything is written.

use super::architecture::Architecture;
use crate::CheckpointError;
use crate::families::Family;
use firebox_model::config::{
    AttentionBias, AttentionKind, ExpertActivation, LatentConfig, ModelConfig, RopeScaling,
};
use firebox_model::rope::yarn_length;

/// llama.cpp stops the process at more layers.
const MOST_LAYERS: usize = 512;
/// llama.cpp stops the process at more experts.
const MOST_EXPERTS: usize = 1024;
/// Models with so many layers have queries without a latent in llama.cpp, and those with these numbers of layers and ids.
const DIRECT_LAYERS: [usize; 2] = [26, 27];
const DIRECT_SIZES: (usize, usize) = (48, 128_256);
/// Of four layers, SmolLM3's last has no rotary positions in llama.cpp.
const NOPE_EACH: usize = 4;

/// The architecture that computes what this model computes.
///
/// # Errors
///
/// When none does, with what the one of the family's name would do otherwise.
pub(super) fn architecture_of(
    config: &ModelConfig,
    family: &Family,
) -> Result<Architecture, CheckpointError> {
    let refused = |reason| CheckpointError::GgufExport { reason };
    let Some(architecture) = Architecture::of(family) else {
        return Err(refused(format!(
            "Firebox knows no architecture of llama.cpp that computes models of the type {}",
            family.model_type
        )));
    };
    match difference(&architecture, config) {
        None => Ok(architecture),
        Some(what) => Err(refused(format!(
            "llama.cpp's architecture {} {what}",
            architecture.name
        ))),
    }
}

/// What the architecture does that the model does not; `None` where both compute the same.
fn difference(architecture: &Architecture, config: &ModelConfig) -> Option<String> {
    let layers = config.layers.len();
    let checks = [
        (layers > MOST_LAYERS)
            .then(|| format!("has at most {MOST_LAYERS} layers, and this model {layers}")),
        of_attention(architecture, config),
        config.latent.and_then(|latent| of_latents(latent, config)),
        of_positions(architecture, config),
        of_experts(architecture, config),
    ];
    checks.into_iter().flatten().next()
}

fn of_attention(architecture: &Architecture, config: &ModelConfig) -> Option<String> {
    let ModelConfig {
        heads,
        kv_heads,
        head_dim,
        d_model,
        ..
    } = *config;
    if !architecture.groups && kv_heads != heads {
        return Some(format!(
            "has as many key/value heads as query heads, and this model {kv_heads} for {heads}"
        ));
    }
    if !architecture.wide && heads * head_dim != d_model {
        return Some(format!(
            "has heads that are {d_model} wide together, as the residual stream is, and those of this model are {}",
            heads * head_dim
        ));
    }
    if !architecture.output_bias && config.attention_bias == AttentionBias::All {
        return Some("has no bias of attention's output, and this model has".to_owned());
    }
    let window = |layer: usize| config.layers[layer].attention.window();
    if let Some(layer) = (0..config.layers.len()).find(|&layer| window(layer).is_some())
        && !architecture.windows
    {
        return Some(format!(
            "attends to all positions, and layer {layer} of this model to a window of {}",
            window(layer).unwrap_or_default()
        ));
    }
    let silent = config.multipliers.attention == Some(0.0);
    silent.then(|| "takes an attention_multiplier of 0 for the usual one".to_owned())
}

fn of_latents(latent: LatentConfig, config: &ModelConfig) -> Option<String> {
    let layers = config.layers.len();
    if !latent.interleaved {
        return Some(
            "turns neighbours by positions, and this model values that are half of them apart (rope_interleave = false)"
                .to_owned(),
        );
    }
    if config.norm_epsilon != LatentConfig::NORM_EPSILON {
        return Some(format!(
            "adds rms_norm_eps in the norms of latents too, and this model {} there and {} elsewhere",
            LatentConfig::NORM_EPSILON,
            config.norm_epsilon
        ));
    }
    let is_direct = DIRECT_LAYERS.contains(&layers) || (layers, config.vocab_size) == DIRECT_SIZES;
    if is_direct && latent.query_rank.is_some() {
        return Some(format!(
            "takes a model of {layers} layers for one whose queries have no latent, as DeepSeek-V2-Lite's, and those of this model have"
        ));
    }
    let what = match config.rope_scaling {
        None => return None,
        Some(RopeScaling::Yarn {
            factor,
            attention_factor,
            ..
        }) => {
            let length = attention_factor.unwrap_or_else(|| yarn_length(factor, 1.0));
            if length == 1.0 && factor >= 1.0 {
                return None;
            }
            "YaRN lengthens rotated queries and keys"
        }
        Some(_) => "positions are scaled without YaRN",
    };
    Some(format!(
        "scales all scores where {what}, and this model does not"
    ))
}

fn of_positions(architecture: &Architecture, config: &ModelConfig) -> Option<String> {
    let nope = |layer: usize| config.layers[layer].attention == AttentionKind::Nope;
    let smollm3 = architecture.families.iter().any(|family| family.nope);
    let expected = |layer: usize| smollm3 && (layer + 1).is_multiple_of(NOPE_EACH);
    if let Some(layer) = (0..config.layers.len()).find(|&layer| nope(layer) != expected(layer)) {
        return Some(match expected(layer) {
            true => format!(
                "has no rotary positions in every fourth layer, and layer {layer} of this model has"
            ),
            false => {
                format!("has rotary positions in layer {layer}, and this model has none there")
            }
        });
    }
    match config.rope_scaling {
        Some(RopeScaling::Llama3 { .. }) if !architecture.factors => {
            Some("does not scale rotary positions as Llama 3 does, and this model does".to_owned())
        }
        Some(RopeScaling::Yarn {
            truncate: false,
            original_context,
            beta_fast,
            beta_slow,
            ..
        }) => {
            // The two places between which frequencies are mixed; see `firebox_model::rope`.
            let place = |rotations: f64| {
                let wavelength = original_context as f64 / (rotations * 2.0 * std::f64::consts::PI);
                config.rotary_dim as f64 * wavelength.ln() / (2.0 * config.rope_theta.ln())
            };
            let (low, high) = (place(beta_fast), place(beta_slow));
            let same = low.floor().max(0.0) == low.max(0.0) && high.ceil() == high;
            (!same).then(|| {
                "rounds the places between which YaRN mixes frequencies, and this model does not (truncate = false)"
                    .to_owned()
            })
        }
        _ => None,
    }
}

fn of_experts(architecture: &Architecture, config: &ModelConfig) -> Option<String> {
    let moe = config.moe.as_ref()?;
    let (experts, router) = (&moe.experts, &moe.router);
    if experts.count > MOST_EXPERTS {
        return Some(format!(
            "has at most {MOST_EXPERTS} experts, and this model {}",
            experts.count
        ));
    }
    match architecture.normalizes {
        Some(true) if !router.normalize => {
            return Some(
                "divides the weights of a token's experts by their sum, and this model does not (norm_topk_prob = false)"
                    .to_owned(),
            );
        }
        Some(false) if router.normalize => {
            return Some(
                "does not divide the weights of a token's experts by their sum, and this model does (norm_topk_prob = true)"
                    .to_owned(),
            );
        }
        _ => {}
    }
    if !architecture.dense_layers && config.dense_layers().next().is_some() {
        return Some("has experts in every layer, and this model has dense layers".to_owned());
    }
    match experts.activation {
        ExpertActivation::ClampedSwiglu { alpha, limit }
            if (alpha, limit) != (ExpertActivation::ALPHA, ExpertActivation::LIMIT) =>
        {
            Some(format!(
                "clamps activations at {} with a factor of {}, and this model at {limit} with {alpha}",
                ExpertActivation::LIMIT,
                ExpertActivation::ALPHA
            ))
        }
        _ => None,
    }
}
