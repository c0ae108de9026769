//! Captions behind their pictures, as a model reads them in training and evaluation.

use std::sync::Arc;

use burn::tensor::{Tensor, TensorData};

use crate::batch::{Batch, Sequence};
use crate::language_model::LanguageModel;
use crate::vision::{Picture, PictureBatch};

/// A caption behind its picture; or text without one.
#[derive(Debug, Clone, PartialEq)]
pub struct Captioned {
    /// The token that stands for the picture, and the caption with the tokens that begin and end it; or text.
    pub sequence: Sequence,
    /// The first targets, which begin every caption and are not to be learned.
    pub given: usize,
    /// The picture; `None` where it is withheld, and of text.
    pub picture: Option<Arc<Picture>>,
}

impl Captioned {
    /// A caption with the tokens that begin and end it, of which the first `beginning` are not to be learned, behind its
    /// picture, or the token alone that stands for it. It has at most `context` targets; what is beyond is cut off.
    /// `document_end` is that of the texts beside it (see [`Sequence::of_window`]).
    pub fn new(
        picture: Option<Picture>,
        image_token: u32,
        caption: &[u32],
        beginning: usize,
        context: usize,
        document_end: Option<u32>,
    ) -> Self {
        let mut tokens = vec![image_token];
        tokens.extend(caption);
        tokens.truncate(context + 1);
        Self {
            given: beginning,
            sequence: Sequence::of_window(&tokens, context, document_end),
            picture: picture.map(Arc::new),
        }
    }

    /// Number of targets that are to be learned.
    pub fn targets(&self) -> u64 {
        self.learned().len() as u64
    }

    /// The targets that are to be learned.
    pub fn learned(&self) -> &[u32] {
        let valid = self.sequence.valid;
        &self.sequence.targets[self.given.min(valid)..valid]
    }

    /// The same with the picture withheld; the token that stands for it stays.
    pub fn without_picture(&self) -> Self {
        Self {
            sequence: self.sequence.clone(),
            given: self.given,
            picture: None,
        }
    }

    /// Its sequence with less padding: `length` tokens, no fewer than are valid.
    ///
    /// # Panics
    ///
    /// When there are more valid ones.
    pub fn shortened(&self, length: usize) -> Sequence {
        assert!(length >= self.sequence.valid, "all valid tokens stay");
        let mut short = self.sequence.clone();
        short.tokens.truncate(length);
        short.targets.truncate(length);
        if let Some(positions) = &mut short.positions {
            positions.truncate(length);
        }
        short
    }

    /// Puts captions on the model's device. What the model makes of their pictures is part of the batch, with its gradient; a
    /// pipeline stage that attends to no pictures makes nothing of them.
    ///
    /// # Panics
    ///
    /// When there are no captions, or the model sees no pictures and there are some.
    pub fn batch(rows: &[Self], model: &LanguageModel) -> Batch {
        let device = &model.device();
        let length = length(rows);
        let sequences: Vec<Sequence> = rows.iter().map(|row| row.shortened(length)).collect();
        let mut batch = Batch::new(&sequences, device);
        if rows.iter().any(|row| row.given > 0) {
            let learned = rows.iter().flat_map(|row| {
                (0..length).map(|place| f32::from((row.given..row.sequence.valid).contains(&place)))
            });
            let learned: Vec<f32> = learned.collect();
            let shape = [rows.len() * length];
            batch.valid = Some(Tensor::from_data(TensorData::new(learned, shape), device));
            batch.valid_tokens = rows.iter().map(Self::targets).sum();
        }
        if rows.iter().all(|row| row.picture.is_none()) {
            return batch;
        }
        let vision = model.config().vision.as_ref();
        let tiles = vision.expect("a model that sees pictures").max_tiles;
        if model.vision.is_none() {
            return batch;
        }
        // Captions that are compared behind one picture, of which the tower makes the same for each.
        if let Some(picture) = shared_picture(rows) {
            let (pictures, shape) = (std::slice::from_ref(picture), [rows.len(), length]);
            let sight = model.sight_of_all(pictures, shape, &mut |_, values| values);
            batch.placement = batch.placement.seeing(sight);
            return batch;
        }
        // The picture stands first: all tokens of the row see it.
        let visible = rows.iter().flat_map(|row| {
            let used = match &row.picture {
                Some(picture) => picture.used.clone(),
                None => vec![false; tiles],
            };
            used.repeat(length)
        });
        let pictures = PictureBatch {
            slots: 1,
            visible: visible.collect(),
            pictures: rows
                .iter()
                .map(|row| row.picture.as_deref().cloned())
                .collect(),
        };
        batch.placement = batch.placement.seeing(model.sight(&pictures));
        batch
    }
}

/// Tokens of a row of a batch of captions: those of the longest. What is behind its last target is padding in all of them.
pub(crate) fn length(captions: &[Captioned]) -> usize {
    let longest = captions.iter().map(|caption| caption.sequence.valid).max();
    longest.unwrap_or(0).max(1)
}

/// The picture that all of several captions have, if it is one and the same.
fn shared_picture(captions: &[Captioned]) -> Option<&Picture> {
    let (first, others) = captions.split_first()?;
    let picture = first.picture.as_ref()?;
    let is_shared = |caption: &Captioned| {
        let own = caption.picture.as_ref();
        own.is_some_and(|own| Arc::ptr_eq(own, picture))
    };
    (!others.is_empty() && others.iter().all(is_shared)).then_some(picture)
}
