//! Documents of validation sources that are also trained on, word for word. A split by hash keeps such copies on one side;
//! a validation source is held out whatever the training sources contain.

use super::build::for_each_document;
use super::error::DataError;
use super::hash::Hash;
use super::survey::Survey;
use crate::config::DataConfig;

/// The documents of validation sources, and which of them are trained on: 9 bytes a document, however much text is
/// trained on. Of a hash, 8 bytes are compared: of a million documents and a billion, two that differ are taken for
/// copies with probability 5e-5.
#[derive(Debug, Default)]
pub(super) struct Copies {
    /// Beginnings of hashes, in order.
    held_out: Vec<u64>,
    trained: Vec<bool>,
}

impl Copies {
    /// Reads the validation sources.
    ///
    /// # Errors
    ///
    /// When one cannot be read, or has changed since the survey.
    pub fn of(data: &DataConfig, survey: &Survey) -> Result<Self, DataError> {
        let mut held_out = Vec::new();
        let tokenizer = survey.tokenizer.as_ref();
        let surveys = survey.sources.iter().skip(data.source.len());
        for (source, survey) in data.validation.source.iter().zip(surveys) {
            for_each_document(source, survey, tokenizer, |_, hash| {
                held_out.push(beginning(hash));
                Ok(())
            })?;
        }
        held_out.sort_unstable();
        held_out.dedup();
        Ok(Self {
            trained: vec![false; held_out.len()],
            held_out,
        })
    }

    /// Notes that the document with this hash is trained on.
    pub fn train_on(&mut self, hash: &Hash) {
        if let Ok(place) = self.held_out.binary_search(&beginning(hash)) {
            self.trained[place] = true;
        }
    }

    /// Whether the document with this hash is among those of validation sources, and was noted.
    pub fn is_trained_on(&self, hash: &Hash) -> bool {
        let place = self.held_out.binary_search(&beginning(hash));
        place.is_ok_and(|place| self.trained[place])
    }
}

fn beginning(hash: &Hash) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|index| hash[index]))
}
