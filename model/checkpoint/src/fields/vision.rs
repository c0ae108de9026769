//! The two tables of a model with a tower: `text_config` and `vision_config`.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{Accept, CheckpointConfig, Fields, Notes, Read, Table};
use crate::families::{CROSS_LAYERS, DEFAULT_RATIOS, TEXT_TYPE, TOWER_TYPE};
use firebox_model::config::{IMAGE_ROWS, MOST_LAYERS, VisionConfig};

impl<'a> Fields<'a> {
    /// What a file with tables says.
    pub(super) fn config_of_tables(&self) -> Read<CheckpointConfig> {
        let text = self.inner(Table::Text, "text_config")?;
        let tower = self.inner(Table::Tower, "vision_config")?;
        let vision = tower.tower()?;
        let of_text = text.model()?;
        let layers = text.size_or("num_hidden_layers", self.family.defaults.num_hidden_layers)?;
        let cross = text.cross_layers(layers)?;
        let width = self.family.defaults.intermediate_size;
        let d_ff = text.size_or("intermediate_size", width)?;
        of_text.validate().map_err(|error| text.broken(error))?;
        let model = of_text.with_vision(vision, &cross, d_ff);
        let model = model.map_err(|error| text.broken(error))?;
        let image = self.size_or("image_token_index", IMAGE_TOKEN)?;
        if image != model.vocab_size {
            let rule = format!(
                "must be text_config.vocab_size = {}, the row of the embedding behind the vocabulary",
                model.vocab_size
            );
            return Err(self.error("image_token_index", &image.into(), &rule));
        }
        let pad = text.value.get("pad_token_id").unwrap_or(&Value::Null);
        if let Some(id) = pad.as_u64()
            && id >= (model.vocab_size + IMAGE_ROWS) as u64
        {
            let rule = format!(
                "must be below the {} rows of the embedding",
                model.vocab_size + IMAGE_ROWS
            );
            return Err(text.error("pad_token_id", pad, &rule));
        }
        Ok(CheckpointConfig {
            model,
            family: self.family,
            eos_ids: text.token_ids("eos_token_id")?,
            bos_id: text.token_ids("bos_token_id")?.first().copied(),
            notes: Notes::of_file(text.value, &self.family, &text.accepted),
        })
    }

    /// A table whose fields are all its own, or come to nothing.
    fn inner(&self, table: Table, key: &'static str) -> Read<Self> {
        let value: Option<&'a Map<String, Value>> = self.value.get(key).and_then(Value::as_object);
        let Some(value) = value else {
            let found = self.value.get(key).unwrap_or(&Value::Null);
            return Err(self.error(key, found, "must be a table"));
        };
        let mut inner = Self {
            path: self.path,
            value,
            family: self.family,
            table,
            accept: Accept::Nothing,
            accepted: BTreeSet::new(),
        };
        inner.accepted = inner.remembered()?;
        let kind = match table {
            Table::Tower => TOWER_TYPE,
            Table::Only | Table::Top | Table::Text => TEXT_TYPE,
        };
        if let Some(found) = value.get("model_type").filter(|found| *found != kind) {
            return Err(inner.error("model_type", found, &format!("Firebox reads {kind}")));
        }
        for (key, value) in value {
            inner.check(key, value)?;
        }
        Ok(inner)
    }

    /// Number of layers that attend to the text.
    pub(super) fn text_layers(&self) -> Read<usize> {
        let layers = self.size_or("num_hidden_layers", self.family.defaults.num_hidden_layers)?;
        match self.table {
            // Lists are not made longer than a model can be.
            Table::Text if layers <= MOST_LAYERS => {
                Ok(layers.saturating_sub(self.cross_layers(layers)?.len()))
            }
            _ => Ok(layers),
        }
    }

    /// The layers of so many that attend to pictures. `transformers` passes over those that are not there.
    fn cross_layers(&self, layers: usize) -> Read<Vec<usize>> {
        let key = "cross_attention_layers";
        let listed = match self.get(key) {
            None => CROSS_LAYERS.map(|layer| layer as u64).to_vec(),
            Some(value) => self.numbers(key, value)?,
        };
        if listed.contains(&0) {
            let value = self.get(key).unwrap_or(&Value::Null);
            let rule = "must not contain 0: the first layer attends to the text, and transformers takes the length of what \
                        is cached from it";
            return Err(self.error(key, value, rule));
        }
        let listed: BTreeSet<usize> = listed
            .into_iter()
            .filter_map(|layer| usize::try_from(layer).ok())
            .filter(|&layer| layer < layers)
            .collect();
        Ok(listed.into_iter().collect())
    }

    fn tower(&self) -> Read<VisionConfig> {
        let width = self.size_or("hidden_size", 1280)?;
        let max_tiles = self.size_or("max_num_tiles", 4)?;
        let key = "supported_aspect_ratios";
        let aspect_ratios = match self.get(key) {
            Some(value) => self.pairs(key, value)?,
            None if max_tiles == 4 => DEFAULT_RATIOS.to_vec(),
            None => {
                let rule = "must be there where max_num_tiles is not 4";
                return Err(self.error(key, &Value::Null, rule));
            }
        };
        let key = "intermediate_layers_indices";
        let intermediate_layers = match self.get(key) {
            None => vec![3, 7, 15, 23, 30],
            Some(value) => {
                let numbers = self.numbers(key, value)?.into_iter();
                // What is beyond this type is beyond the layers too.
                let numbers = numbers.map(|number| usize::try_from(number).unwrap_or(usize::MAX));
                numbers.collect()
            }
        };
        let vision = VisionConfig {
            width,
            d_ff: self.size_or("intermediate_size", 5120)?,
            heads: self.size_or("attention_heads", 16)?,
            layers: self.size_or("num_hidden_layers", 32)?,
            global_layers: self.size_or("num_global_layers", 8)?,
            tile_size: self.size_or("image_size", 448)?,
            patch_size: self.size_or("patch_size", 14)?,
            max_tiles,
            aspect_ratios,
            intermediate_layers,
            norm_epsilon: self.number_or("norm_eps", 1e-5)?,
            initializer_range: self.number_or("initializer_range", 0.02)?,
        };
        let of_states = 1 + vision.intermediate_layers.len();
        let output = self.size_or("vision_output_dim", 7680)?;
        if width.checked_mul(of_states) != Some(output) {
            let rule = format!(
                "must be hidden_size = {width} times {of_states}: the last state, and those of intermediate_layers_indices"
            );
            return Err(self.error("vision_output_dim", &output.into(), &rule));
        }
        Ok(vision)
    }

    fn pairs(&self, key: &str, value: &Value) -> Read<Vec<[usize; 2]>> {
        let pair = |pair: &Value| -> Option<[usize; 2]> {
            let size = |place: usize| usize::try_from(pair.get(place)?.as_u64()?).ok();
            let length = pair.as_array().map(Vec::len);
            (length == Some(2)).then_some([size(0)?, size(1)?])
        };
        let pairs = value
            .as_array()
            .and_then(|list| list.iter().map(pair).collect());
        pairs.ok_or_else(|| {
            let rule = "must be a list of pairs of integers: rows and columns of tiles";
            self.error(key, value, rule)
        })
    }

    /// The field that a key of [`ModelKeys`](firebox_model::config::ModelKeys) is read from, with its table.
    pub(super) fn field_in_tables(&self, key: &str) -> String {
        let field = match key {
            "vision.cross_attention_layers" => "text_config.cross_attention_layers",
            "vision.width" => "vision_config.hidden_size",
            "vision.d_ff" => "vision_config.intermediate_size",
            "vision.heads" => "vision_config.attention_heads",
            "vision.layers" => "vision_config.num_hidden_layers",
            "vision.global_layers" => "vision_config.num_global_layers",
            "vision.tile_size" => "vision_config.image_size",
            "vision.patch_size" => "vision_config.patch_size",
            "vision.max_tiles" => "vision_config.max_num_tiles",
            "vision.aspect_ratios" => "vision_config.supported_aspect_ratios",
            "vision.intermediate_layers" => "vision_config.intermediate_layers_indices",
            "vision.norm_epsilon" => "vision_config.norm_eps",
            "vision.initializer_range" => "vision_config.initializer_range",
            key => return format!("text_config.{}", self.field_of(key)),
        };
        field.to_owned()
    }
}

/// `image_token_index` where it is absent.
const IMAGE_TOKEN: usize = 128_256;
