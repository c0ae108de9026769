//! The attention of each layer: windows, rotary positions, biases.

use serde_json::Value;

use super::{Bias, Fields, Read, Usage, Windows};
use firebox_model::config::{AttentionBias, AttentionKind, LatentConfig, Multipliers};

impl Fields<'_> {
    /// The attention of each layer. A window that is as long as the context hides nothing, and families with a switch
    /// for it have it off unless the switch is on.
    pub(super) fn attention(&self, layers: usize, context: usize) -> Read<Vec<AttentionKind>> {
        let absent = &self.family.defaults;
        let has = |key| self.usage(key) == Some(Usage::Read);
        let written = self.size_or("sliding_window", 0)?;
        let in_use = !has("use_sliding_window") || self.flag("use_sliding_window")?;
        let field = self.value.get("sliding_window");
        let window = match field.filter(|_| has("sliding_window")) {
            Some(Value::Null) => None,
            Some(_) => Some(written),
            None => absent.sliding_window,
        };
        let window = window.filter(|_| in_use);
        let hides = window.filter(|&window| window < context);
        let by_layer = matches!(self.family.windows, Windows::ByLayer | Windows::EvenBelow);
        let alternating = self.family.windows == Windows::Alternating;
        if (by_layer || alternating)
            && let Some(kinds) = self.get("layer_types")
        {
            return self.listed_attention(kinds, layers, window, hides);
        }
        if alternating {
            let kinds = ["sliding_attention", "full_attention"];
            let kinds = kinds.into_iter().cycle().take(layers).collect();
            return self.listed_attention(&kinds, layers, window, hides);
        }
        if let Some(value) = self.get("layer_types") {
            let kinds = value.as_array();
            let kinds = kinds.ok_or_else(|| self.error("layer_types", value, "must be a list"))?;
            if let Some(kind) = kinds.iter().find(|kind| *kind != "full_attention") {
                let rule = "in this family all layers attend alike, whatever the field says";
                return Err(self.error("layer_types", kind, rule));
            }
        }
        let bound = self.size_or("max_window_layers", absent.max_window_layers)?;
        let has_window = |layer: usize| match self.family.windows {
            Windows::ByLayer => layer >= bound,
            Windows::EvenBelow => layer.is_multiple_of(2) && layer < bound,
            Windows::None | Windows::All | Windows::Alternating => true,
        };
        if self.family.windows == Windows::None
            && let Some(window) = hides
        {
            let rule = match self.family.nope {
                true => {
                    "Firebox has no windows in layers without rotary positions, where this family has them"
                }
                false => {
                    "in this family every layer attends to the whole context, whatever the field says"
                }
            };
            return Err(self.error("sliding_window", &window.into(), rule));
        }
        let rotary = match self.family.nope {
            true => self.rotary_layers(layers)?,
            false => vec![true; layers],
        };
        let kind = |(layer, rotary): (usize, bool)| match hides {
            Some(window) if has_window(layer) => AttentionKind::Window(window),
            _ if !rotary => AttentionKind::Nope,
            _ => AttentionKind::Full,
        };
        Ok(rotary.into_iter().enumerate().map(kind).collect())
    }

    /// Which layers have rotary positions: those with a 1 in `no_rope_layers`, or all but every
    /// `no_rope_layer_interval`th.
    fn rotary_layers(&self, layers: usize) -> Read<Vec<bool>> {
        let absent = self.family.defaults.no_rope_layer_interval;
        let key = "no_rope_layer_interval";
        let interval = self.size_or(key, absent)?;
        let Some(value) = self.get("no_rope_layers") else {
            if interval == 0 {
                return Err(self.error(key, &interval.into(), "must be at least 1"));
            }
            return Ok((1..=layers)
                .map(|layer| !layer.is_multiple_of(interval))
                .collect());
        };
        let flags = self.numbers("no_rope_layers", value)?;
        if flags.len() != layers {
            let rule = format!("must have a number for each of the {layers} layers");
            return Err(self.error("no_rope_layers", value, &rule));
        }
        Ok(flags.into_iter().map(|flag| flag != 0).collect())
    }

    /// The attention of each layer as `layer_types` lists it, where `window` is in use and hides something.
    fn listed_attention(
        &self,
        kinds: &Value,
        layers: usize,
        window: Option<usize>,
        hides: Option<usize>,
    ) -> Read<Vec<AttentionKind>> {
        let list = kinds
            .as_array()
            .ok_or_else(|| self.error("layer_types", kinds, "must be a list"))?;
        if list.len() != layers {
            let rule = format!("must have a word for each of the {layers} layers");
            return Err(self.error("layer_types", kinds, &rule));
        }
        let kind = |kind: &Value| match (kind.as_str(), window) {
            (Some("full_attention"), _) => Ok(AttentionKind::Full),
            (Some("sliding_attention"), Some(_)) => {
                Ok(hides.map_or(AttentionKind::Full, AttentionKind::Window))
            }
            (Some("sliding_attention"), None) => {
                let rule = "has no window: sliding_window is null, or use_sliding_window is false";
                Err(self.error("layer_types", kind, rule))
            }
            _ => Err(self.error(
                "layer_types",
                kind,
                "must be full_attention or sliding_attention",
            )),
        };
        list.iter().map(kind).collect()
    }

    /// The latents of a family that has them, and the width of a query's head with how many of its values are rotated.
    pub(super) fn latent(&self) -> Read<Option<(LatentConfig, (usize, usize))>> {
        if !self.family.latent {
            return Ok(None);
        }
        let absent = &self.family.defaults;
        let plain = self.size_or("qk_nope_head_dim", absent.qk_nope_head_dim)?;
        let rotary = self.size_or("qk_rope_head_dim", absent.qk_rope_head_dim)?;
        // `transformers` makes the table of rotary positions by it.
        if self.size_or("head_dim", rotary)? != rotary {
            let rule = format!(
                "must be qk_rope_head_dim = {rotary}, the values of a head that are rotated"
            );
            return Err(self.error("head_dim", &self.value["head_dim"], &rule));
        }
        let latent = LatentConfig {
            rank: self.size_or("kv_lora_rank", absent.kv_lora_rank)?,
            query_rank: match self.value.get("q_lora_rank") {
                Some(Value::Null) => None,
                _ => Some(self.size_or("q_lora_rank", absent.q_lora_rank)?),
            },
            value_dim: self.size_or("v_head_dim", absent.v_head_dim)?,
            interleaved: match self.value.get("rope_interleave") {
                Some(Value::Null) => false,
                _ => self.flag_or("rope_interleave", true)?,
            },
        };
        Ok(Some((latent, (plain.saturating_add(rotary), rotary))))
    }

    /// The constant factors. That of the scores takes the place of the usual one, and is 1 where it is absent.
    pub(super) fn multipliers(&self, head_dim: usize) -> Read<Multipliers> {
        if !self.family.multipliers {
            return Ok(Multipliers::NONE);
        }
        let attention = self.number_or("attention_multiplier", 1.0)?;
        let usual = Multipliers::usual_attention(head_dim);
        Ok(Multipliers {
            embedding: self.number_or("embedding_multiplier", 1.0)?,
            residual: self.number_or("residual_multiplier", 1.0)?,
            attention: (attention != usual).then_some(attention),
            logits_divisor: self.number_or("logits_scaling", 1.0)?,
        })
    }

    pub(super) fn attention_bias(&self) -> Read<AttentionBias> {
        let absent = self.family.defaults.attention_bias;
        let switch = || self.flag_or("attention_bias", absent);
        Ok(match self.family.bias {
            Bias::Qkv => AttentionBias::Qkv,
            Bias::QkvBias if self.flag_or("qkv_bias", absent)? => AttentionBias::Qkv,
            Bias::AsConfigured if switch()? => AttentionBias::All,
            Bias::QkvAsConfigured if switch()? => AttentionBias::Qkv,
            Bias::None | Bias::AsConfigured | Bias::QkvAsConfigured | Bias::QkvBias => {
                AttentionBias::None
            }
        })
    }
}
