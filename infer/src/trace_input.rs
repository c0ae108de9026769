//! The tokens of a trace, from a safetensors file.

use std::fs;
use std::path::Path;

use firebox_console::durable::FileError;
use firebox_model::config::ModelConfig;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

use crate::InferError;

/// Rows of tokens, and which of them are padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TraceInput {
    /// Rows.
    pub batch: usize,
    /// Tokens of a row, padding included.
    pub sequence: usize,
    /// `batch · sequence` token ids.
    pub ids: Vec<u32>,
    /// `batch · sequence` flags, false for padding.
    pub valid: Vec<bool>,
}

impl TraceInput {
    /// Reads `input_ids`, `[batch, sequence]` whole numbers, and `attention_mask` of the same shape, 0 for
    /// padding and 1 otherwise (all 1 where it is absent). Other tensors are left alone, so that the output of
    /// a trace is an input too.
    ///
    /// # Errors
    ///
    /// When the file is damaged or lacks them.
    pub fn read(path: &Path) -> Result<Self, InferError> {
        let error = |reason: String| InferError::TraceInput {
            file: path.to_owned(),
            reason,
        };
        let bytes = fs::read(path)
            .map_err(FileError::of("read", path))
            .map_err(InferError::Read)?;
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|source| error(format!("it is no safetensors file: {source}")))?;
        let ids = file
            .tensor("input_ids")
            .map_err(|_| error("it has no tensor input_ids".to_owned()))?;
        let &[batch, sequence] = ids.shape() else {
            let reason = format!(
                "input_ids has shape {:?}; [batch, sequence] is needed",
                ids.shape()
            );
            return Err(error(reason));
        };
        let values = |name: &str, view: &TensorView<'_>| {
            integers(view).ok_or_else(|| {
                let dtype = view.dtype();
                error(format!(
                    "{name} is {dtype:?}; whole numbers are needed, such as I64"
                ))
            })
        };
        let read = values("input_ids", &ids)?;
        let negative = |id: &i64| error(format!("input_ids has {id}, which is no token's number"));
        let ids: Result<Vec<u32>, InferError> = read
            .iter()
            .map(|id| u32::try_from(*id).map_err(|_| negative(id)))
            .collect();
        let valid = match file.tensor("attention_mask") {
            Err(_) => vec![true; batch * sequence],
            Ok(mask) if mask.shape() != [batch, sequence] => {
                let reason = format!(
                    "attention_mask has shape {:?}, and input_ids {:?}",
                    mask.shape(),
                    [batch, sequence]
                );
                return Err(error(reason));
            }
            Ok(mask) => {
                let read = values("attention_mask", &mask)?;
                if let Some(other) = read.iter().find(|flag| ![0, 1].contains(*flag)) {
                    return Err(error(format!(
                        "attention_mask has {other}; 0 and 1 are allowed"
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
        })
    }

    /// Checks the tokens against a model.
    ///
    /// # Errors
    ///
    /// When there are none, a row is longer than the context, or an id is beyond the vocabulary.
    pub fn check(&self, path: &Path, model: &ModelConfig) -> Result<(), InferError> {
        let reason = if self.ids.is_empty() {
            "input_ids is empty".to_owned()
        } else if self.sequence > model.context {
            format!(
                "its rows have {} tokens, and the model's context {}",
                self.sequence, model.context
            )
        } else if let Some(id) = self.ids.iter().find(|id| **id as usize >= model.vocabulary) {
            format!(
                "token {id} is beyond the model's vocabulary of {}",
                model.vocabulary
            )
        } else {
            return Ok(());
        };
        Err(InferError::TraceInput {
            file: path.to_owned(),
            reason,
        })
    }

    /// The token after each one, and whether both are tokens; the last of a row predicts nothing.
    pub fn targets(&self) -> (Vec<u32>, Vec<bool>) {
        let following = |index: usize| {
            let inner = !(index + 1).is_multiple_of(self.sequence);
            let next = if inner { index + 1 } else { index };
            let counted = inner && self.valid[index] && self.valid[next];
            (self.ids[next], counted)
        };
        (0..self.ids.len()).map(following).unzip()
    }

    /// How many tokens are predicted.
    pub fn pairs(&self) -> usize {
        self.targets()
            .1
            .into_iter()
            .filter(|counted| *counted)
            .count()
    }
}

/// Values of a tensor of whole numbers or flags.
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
    fn only_pairs_of_tokens_count() {
        let ids = NamedTensor::int("input_ids", [2, 3], vec![4, 5, 6, 7, 8, 9]);
        let mask = NamedTensor::int("attention_mask", [2, 3], vec![0, 1, 1, 1, 1, 0]);
        let input = read(&[ids, mask]).unwrap();
        let (targets, counted) = input.targets();
        assert_eq!(targets, [5, 6, 6, 8, 9, 9]);
        assert_eq!(counted, [false, true, false, true, false, false]);
        assert_eq!(input.pairs(), 2);
    }

    #[test]
    fn what_is_no_input_is_refused() {
        let ids =
            |shape: &[usize], values: &[i64]| NamedTensor::int("input_ids", shape, values.to_vec());
        let mask = |values: &[i64]| NamedTensor::int("attention_mask", [1, 2], values.to_vec());
        let floats = || NamedTensor::float("input_ids", [1, 1], || vec![1.0]);
        let cases = [
            (vec![mask(&[1, 1])], "has no tensor input_ids"),
            (vec![ids(&[2], &[1, 2])], "has shape [2]"),
            (vec![ids(&[1, 1], &[-1])], "has -1"),
            (vec![floats()], "is F32"),
            (
                vec![ids(&[2, 1], &[1, 2]), mask(&[1, 1])],
                "[1, 2], and input_ids [2, 1]",
            ),
            (
                vec![ids(&[1, 2], &[1, 2]), mask(&[1, 2])],
                "attention_mask has 2",
            ),
        ];
        for (tensors, reason) in cases {
            let error = read(&tensors).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
