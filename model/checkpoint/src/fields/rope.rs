//! The rotary positions: `rope_parameters`, or as older files spell it, `rope_theta` and `rope_scaling`.

use serde_json::{Map, Value};

use super::{Fields, Read};
use firebox_model::config::RopeScaling;
use firebox_model::rope::yarn_length;

/// The field with the part of each head that is rotated.
const PARTIAL: &str = "partial_rotary_factor";

/// A table of config.json.
struct Table<'a> {
    fields: &'a Fields<'a>,
    name: &'static str,
    values: &'a Map<String, Value>,
}

impl Fields<'_> {
    /// The base of the frequencies and their scaling, of a model with this context.
    ///
    /// To `transformers`, `rope_scaling` replaces all of `rope_parameters`, its base included. A file with both is read if
    /// both say the same.
    pub(super) fn rope(&self, context: usize) -> Read<(f64, Option<RopeScaling>)> {
        let [new, old] = ["rope_parameters", "rope_scaling"].map(|name| self.table(name));
        let (new, old) = (new?, old?);
        let beside = self
            .get("rope_theta")
            .map(|_| self.number("rope_theta"))
            .transpose()?;
        let of = |table: &Table| -> Read<_> {
            let theta = table.number("rope_theta")?.or(beside);
            let theta = theta.unwrap_or(self.family.defaults.rope_theta);
            Ok((theta, table.scaling(context)?))
        };
        let name = new.as_ref().or(old.as_ref()).map_or("", |table| table.name);
        let rope = match (&new, &old) {
            (None, None) => {
                let absent = &self.family.defaults;
                let theta = beside.unwrap_or(absent.rope_theta);
                let neither = ["rope_parameters", "rope_scaling"]
                    .iter()
                    .all(|name| self.get(name).is_none());
                return Ok((theta, absent.rope_scaling.filter(|_| neither)));
            }
            (Some(table), None) | (None, Some(table)) => of(table)?,
            (Some(new), Some(old)) => {
                let (rope, other) = (of(new)?, of(old)?);
                if rope != other {
                    let rule = "must say what rope_parameters says, which it takes the place of";
                    let value = Value::Object(old.values.clone());
                    return Err(self.error(old.name, &value, rule));
                }
                rope
            }
        };
        match beside {
            Some(beside) if beside != rope.0 => {
                let rule = format!(
                    "must be {name}.rope_theta = {}, which it is another name of",
                    rope.0
                );
                Err(self.error("rope_theta", &self.value["rope_theta"], &rule))
            }
            _ => Ok(rope),
        }
    }

    /// The width of a head, and how many of its values are rotated. A factor in a table wins over one beside it.
    pub(super) fn with_rotary_dim(&self, head_dim: usize) -> Read<(usize, usize)> {
        if !self.family.partial_rotary {
            return Ok((head_dim, head_dim));
        }
        let key = PARTIAL;
        let tables = [self.table("rope_scaling")?, self.table("rope_parameters")?];
        let mut factor = None;
        for table in tables.iter().flatten() {
            factor = factor.or(table.number(key)?);
        }
        let beside = self.number_or(key, self.family.defaults.partial_rotary_factor)?;
        let factor = factor.unwrap_or(beside);
        let rotated = head_dim as f64 * factor;
        let allowed = (2.0..=head_dim as f64).contains(&rotated);
        if !allowed || !(rotated as usize).is_multiple_of(2) {
            let rule = format!(
                "must leave an even number of values from 2 to head_dim = {head_dim} to be rotated"
            );
            return Err(self.error(key, &factor.into(), &rule));
        }
        Ok((head_dim, rotated as usize))
    }

    /// A table that is there and has fields.
    fn table(&self, name: &'static str) -> Read<Option<Table<'_>>> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        let Some(values) = value.as_object() else {
            return Err(self.error(name, value, "must be a table"));
        };
        Ok((!values.is_empty()).then_some(Table {
            fields: self,
            name,
            values,
        }))
    }
}

impl Table<'_> {
    /// What it makes of the frequencies; `None` if it leaves them as they are.
    fn scaling(&self, context: usize) -> Read<Option<RopeScaling>> {
        let key = match self.values.contains_key("rope_type") {
            true => "rope_type",
            false => "type",
        };
        let kind = self.values.get(key).map_or(Some("default"), Value::as_str);
        let found = match kind {
            Some("default") => {
                self.refuse_others(&[])?;
                None
            }
            Some("linear") => {
                self.refuse_others(&["factor"])?;
                Some(RopeScaling::Linear {
                    factor: self.needed("factor")?,
                })
            }
            Some("llama3") => {
                self.refuse_others(&[
                    "factor",
                    "low_freq_factor",
                    "high_freq_factor",
                    "original_max_position_embeddings",
                ])?;
                Some(RopeScaling::Llama3 {
                    factor: self.needed("factor")?,
                    low_freq_factor: self.needed("low_freq_factor")?,
                    high_freq_factor: self.needed("high_freq_factor")?,
                    original_context: self.original_context(context)?,
                })
            }
            Some("yarn") => Some(self.yarn(context)?),
            _ => {
                let value = self.values.get(key).unwrap_or(&Value::Null);
                let rule = "Firebox computes default, linear, llama3 and yarn";
                return Err(self.error(key, value, rule));
            }
        };
        // A scale of 1 scales nothing.
        Ok(found.filter(|scaling| *scaling != RopeScaling::Linear { factor: 1.0 }))
    }

    fn yarn(&self, context: usize) -> Read<RopeScaling> {
        self.refuse_others(&[
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ])?;
        let original_context = self.original_context(context)?;
        let factor = match self.values.get("factor") {
            Some(Value::Null) => context as f64 / original_context as f64,
            _ => self.needed("factor")?,
        };
        // Zero stands for the default here, as an absent value does.
        let or = |key: &str, absent: f64| -> Read<f64> {
            let number = self.number(key)?;
            Ok(number.filter(|&number| number != 0.0).unwrap_or(absent))
        };
        let lengths = (or("mscale", 0.0)?, or("mscale_all_dim", 0.0)?);
        let attention_factor = match (self.number("attention_factor")?, lengths) {
            (Some(factor), _) => Some(factor),
            (None, (m, all)) if m != 0.0 && all != 0.0 => {
                Some(yarn_length(factor, m) / yarn_length(factor, all))
            }
            (None, _) => None,
        };
        Ok(RopeScaling::Yarn {
            mscale_all_dim: match self.fields.family.latent {
                true => lengths.1,
                false => 0.0,
            },
            factor,
            original_context,
            beta_fast: or("beta_fast", 32.0)?,
            beta_slow: or("beta_slow", 1.0)?,
            attention_factor,
            truncate: match self.values.get("truncate") {
                None => true,
                Some(value) => value
                    .as_bool()
                    .ok_or_else(|| self.error("truncate", value, "must be true or false"))?,
            },
        })
    }

    /// Refuses what this kind of scaling does not have and does not come to nothing.
    fn refuse_others(&self, known: &[&str]) -> Read<()> {
        for (key, value) in self.values {
            let allowed = match key.as_str() {
                "rope_theta" | "rope_type" | "type" => true,
                key if known.contains(&key) => true,
                PARTIAL if self.fields.family.partial_rotary => true,
                PARTIAL | "factor" => value.is_null() || value.as_f64() == Some(1.0),
                _ => value.is_null(),
            };
            if !allowed {
                let rule = "Firebox computes no such scaling of rotary positions";
                return Err(self.error(key, value, rule));
            }
        }
        Ok(())
    }

    fn original_context(&self, context: usize) -> Read<usize> {
        let key = "original_max_position_embeddings";
        let Some(value) = self.values.get(key) else {
            return Ok(context);
        };
        let size = value.as_u64().and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| self.error(key, value, "must be a number of tokens"))
    }

    fn needed(&self, key: &str) -> Read<f64> {
        let number = self.number(key)?;
        number.ok_or_else(|| self.error(key, &Value::Null, "must be a number"))
    }

    fn number(&self, key: &str) -> Read<Option<f64>> {
        match self.values.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64() {
                Some(number) => Ok(Some(number)),
                None => Err(self.error(key, value, "must be a number")),
            },
        }
    }

    fn error(&self, key: &str, value: &Value, rule: &str) -> super::CheckpointError {
        let key = format!("{}.{key}", self.name);
        self.fields.error(&key, value, rule)
    }
}
