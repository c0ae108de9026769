//! The input of a trace: token ids, padding mask and pictures from a safetensors file.

mod pictures;

use std::fs;
use std::path::Path;

use firebox_console::durable::FileError;
use firebox_model::config::ModelConfig;
use firebox_model::layout::is_padded_at_its_ends;
use firebox_model::vision::PictureBatch;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::InferError;

/// Token ids, padding mask and pictures.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceInput {
    /// Number of rows.
    pub batch: usize,
    /// Length of a row in tokens, padding included.
    pub sequence: usize,
    /// `batch · sequence` token ids.
    pub ids: Vec<u32>,
    /// `batch · sequence` flags, false for padding.
    pub valid: Vec<bool>,
    /// The pictures that the tokens see, if there are any.
    pub pictures: Option<PictureBatch>,
}

impl TraceInput {
    /// Reads `input_ids`, integers of shape `[batch, sequence]`, and `attention_mask` of the same shape, 0 for padding
    /// and 1 otherwise (all 1 if absent). With `pixel_values`, also pictures:
    ///
    /// | tensor | shape | |
    /// |---|---|---|
    /// | `pixel_values` | `[batch, slots, max_tiles, 3, tile_size, tile_size]` | F32, as the image processor makes them |
    /// | `aspect_ratio_ids` | `[batch, slots]` | 0 for an empty slot, or the number of the arrangement of tiles, from 1 |
    /// | `aspect_ratio_mask` | `[batch, slots, max_tiles]` | 1 for tiles in use |
    /// | `cross_attention_mask` | `[batch, sequence, slots, max_tiles]` | 1 where a token sees a tile |
    ///
    /// Other tensors are ignored, so that the output of a trace is a valid input.
    ///
    /// # Errors
    ///
    /// When the file cannot be read, is not a safetensors file, lacks `input_ids`, or contains a tensor of another shape,
    /// type or range.
    pub fn read(path: &Path) -> Result<Self, InferError> {
        let error = |reason: String| InferError::TraceInput {
            file: path.to_owned(),
            reason,
        };
        let bytes = fs::read(path)
            .map_err(FileError::of("read", path))
            .map_err(InferError::Read)?;
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|source| error(format!("not a safetensors file: {source}")))?;
        let ids = file
            .tensor("input_ids")
            .map_err(|_| error("tensor input_ids is missing".to_owned()))?;
        let &[batch, sequence] = ids.shape() else {
            let reason = format!(
                "input_ids has shape {:?}; expected [batch, sequence]",
                ids.shape()
            );
            return Err(error(reason));
        };
        let values = |name: &str, view: &TensorView<'_>| {
            integers(view).ok_or_else(|| {
                let dtype = view.dtype();
                error(format!(
                    "{name} has type {dtype:?}; expected integers, such as I64"
                ))
            })
        };
        let read = values("input_ids", &ids)?;
        let negative = |id: &i64| {
            error(format!(
                "input_ids contains {id}; token ids are 0 to 4294967295"
            ))
        };
        let ids: Result<Vec<u32>, InferError> = read
            .iter()
            .map(|id| u32::try_from(*id).map_err(|_| negative(id)))
            .collect();
        let valid = match file.tensor("attention_mask") {
            Err(_) => vec![true; batch * sequence],
            Ok(mask) if mask.shape() != [batch, sequence] => {
                let reason = format!(
                    "attention_mask has shape {:?}, but input_ids has {:?}",
                    mask.shape(),
                    [batch, sequence]
                );
                return Err(error(reason));
            }
            Ok(mask) => {
                let read = values("attention_mask", &mask)?;
                if let Some(other) = read.iter().find(|flag| ![0, 1].contains(*flag)) {
                    return Err(error(format!(
                        "attention_mask contains {other}; expected 0 or 1"
                    )));
                }
                read.into_iter().map(|flag| flag == 1).collect()
            }
        };
        Ok(Self {
            batch,
            sequence,
            ids: ids?,
            valid,
            pictures: pictures::read(&file, [batch, sequence]).map_err(error)?,
        })
    }

    /// Checks the tokens against a model.
    ///
    /// # Errors
    ///
    /// When there are no tokens, a row is longer than the context, an id is not in the vocabulary, padding stands between two
    /// tokens, or there are pictures that the model cannot see.
    pub fn check(&self, path: &Path, model: &ModelConfig) -> Result<(), InferError> {
        let reason = if self.ids.is_empty() {
            "input_ids is empty".to_owned()
        } else if self.sequence > model.context_length {
            format!(
                "rows of {} tokens exceed the model's context of {}",
                self.sequence, model.context_length
            )
        } else if let Some(id) = self
            .ids
            .iter()
            .find(|id| **id as usize >= model.input_ids())
        {
            format!(
                "token id {id} is not in the model's vocabulary of {} ids",
                model.vocab_size
            )
        } else if !self.valid.chunks(self.sequence).all(is_padded_at_its_ends) {
            "attention_mask has padding between two tokens of a row; it may stand at either end"
                .to_owned()
        } else if let Err(reason) = self.check_pictures(model) {
            reason
        } else {
            return Ok(());
        };
        Err(InferError::TraceInput {
            file: path.to_owned(),
            reason,
        })
    }

    fn check_pictures(&self, model: &ModelConfig) -> Result<(), String> {
        match (&self.pictures, &model.vision) {
            (None, _) => Ok(()),
            (Some(_), None) => Err("there are pictures, and the model sees none".to_owned()),
            (Some(pictures), Some(vision)) => pictures.check([self.batch, self.sequence], vision),
        }
    }

    /// The successor of each token, and the loss mask: true where neither of the two is padding and the successor is no image
    /// token, which is no prediction. The last position of a row has no target.
    pub fn targets(&self, image_token: Option<u32>) -> (Vec<u32>, Vec<bool>) {
        let following = |index: usize| {
            let inner = !(index + 1).is_multiple_of(self.sequence);
            let next = if inner { index + 1 } else { index };
            if Some(self.ids[next]) == image_token {
                return (0, false);
            }
            let in_loss = inner && self.valid[index] && self.valid[next];
            (self.ids[next], in_loss)
        };
        (0..self.ids.len()).map(following).unzip()
    }

    /// Number of predicted tokens.
    pub fn pairs(&self, image_token: Option<u32>) -> usize {
        self.targets(image_token)
            .1
            .into_iter()
            .filter(|in_loss| *in_loss)
            .count()
    }
}

/// Values of a tensor of integers or flags; `None` for other types.
fn integers(view: &TensorView<'_>) -> Option<Vec<i64>> {
    macro_rules! words {
        ($kind:ty) => {
            view.data()
                .chunks_exact(size_of::<$kind>())
                .map(|word| {
                    i64::from(<$kind>::from_le_bytes(
                        word.try_into().expect("a whole word"),
                    ))
                })
                .collect()
        };
    }
    Some(match view.dtype() {
        Dtype::I64 => words!(i64),
        Dtype::I32 => words!(i32),
        Dtype::U32 => words!(u32),
        Dtype::I16 => words!(i16),
        Dtype::U16 => words!(u16),
        Dtype::I8 => words!(i8),
        Dtype::U8 | Dtype::BOOL => words!(u8),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use firebox_checkpoint::{NamedTensor, write_tensors};
    use firebox_kernels::dtype::WeightDtype;

    use super::*;

    fn read(tensors: &[NamedTensor<'_>]) -> Result<TraceInput, InferError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("in.safetensors");
        write_tensors(&path, tensors, WeightDtype::F32).unwrap();
        TraceInput::read(&path)
    }

    #[test]
    fn padding_is_not_predicted() {
        let ids = NamedTensor::int("input_ids", [2, 3], vec![4, 5, 6, 7, 8, 9]);
        let mask = NamedTensor::int("attention_mask", [2, 3], vec![0, 1, 1, 1, 1, 0]);
        let input = read(&[ids, mask]).unwrap();
        let (targets, loss_mask) = input.targets(None);
        assert_eq!(targets, [5, 6, 6, 8, 9, 9]);
        assert_eq!(loss_mask, [false, true, false, true, false, false]);
        assert_eq!(input.pairs(None), 2);
        // An image token is no prediction.
        assert_eq!(input.pairs(Some(6)), 1);
    }

    #[test]
    fn padding_stands_at_the_ends_of_a_row() {
        const T: bool = true;
        const F: bool = false;
        for (valid, fits) in [
            ([F, T, T, T, T, F], true),
            ([F, F, F, T, T, T], true),
            ([T, T, T, T, F, T], false),
        ] {
            let input = TraceInput {
                batch: 2,
                sequence: 3,
                ids: vec![0; 6],
                valid: valid.to_vec(),
                pictures: None,
            };
            let checked = input.check(Path::new("input"), &crate::testing::tiny_config());
            assert_eq!(checked.is_ok(), fits, "{valid:?}");
        }
    }

    #[test]
    fn invalid_inputs_are_rejected() {
        let ids =
            |shape: &[usize], values: &[i64]| NamedTensor::int("input_ids", shape, values.to_vec());
        let mask = |values: &[i64]| NamedTensor::int("attention_mask", [1, 2], values.to_vec());
        let floats = || NamedTensor::float("input_ids", [1, 1], || vec![1.0]);
        let cases = [
            (vec![mask(&[1, 1])], "tensor input_ids is missing"),
            (vec![ids(&[2], &[1, 2])], "has shape [2]"),
            (vec![ids(&[1, 1], &[-1])], "contains -1"),
            (vec![floats()], "has type F32"),
            (
                vec![ids(&[2, 1], &[1, 2]), mask(&[1, 1])],
                "[1, 2], but input_ids has [2, 1]",
            ),
            (
                vec![ids(&[1, 2], &[1, 2]), mask(&[1, 2])],
                "attention_mask contains 2",
            ),
        ];
        for (tensors, reason) in cases {
            let error = read(&tensors).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
