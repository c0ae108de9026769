//! Captioned pictures with random access: as with text, the number of those seen is all that a resume needs.

use std::sync::Arc;

use firebox_image::{Fitted, Processor};
use firebox_model::captions::Captioned;
use firebox_model::vision::Picture;
use sha2::{Digest, Sha256};

use super::error::DataError;
use super::order::{Order, OrderSource};
use super::pictures::PictureSet;
use super::shards::TokenSet;
use super::split::HeldOutPicture;
use crate::config::{Share, TileLimits};

/// Captions and their pictures: a document of the tokens belongs to the picture of the same number.
#[derive(Debug)]
pub(super) struct CaptionSet {
    pub tokens: TokenSet,
    pub pictures: PictureSet,
}

impl CaptionSet {
    /// The tokens of a caption, those that begin and end a document included, and its picture.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    fn read(&self, number: u64) -> Result<(Vec<u32>, Fitted), DataError> {
        let mut tokens = Vec::new();
        self.tokens
            .read(self.tokens.document(number)?.tokens, &mut tokens)?;
        Ok((tokens, self.pictures.read(number)?))
    }
}

/// How captions and pictures become what a model reads.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    /// Stands for a picture.
    pub image_token: u32,
    /// Tokens that begin a document; they are given, not to be learned.
    pub beginning: usize,
    pub processor: Processor,
}

impl Reading {
    pub fn new(image_token: u32, beginning: usize, tiles: TileLimits) -> Self {
        Self {
            image_token,
            beginning,
            processor: tiles.processor(),
        }
    }

    /// A caption behind its picture.
    fn captioned(&self, caption: &[u32], context: usize, fitted: &Fitted) -> Captioned {
        let tiles = self.processor.tiles(fitted);
        let picture = Picture {
            arrangement: tiles.aspect_ratio_id,
            used: (0..self.processor.max_tiles())
                .map(|tile| tile < tiles.used)
                .collect(),
            pixels: tiles.pixel_values,
        };
        Captioned::new(picture, self.image_token, caption, self.beginning, context)
    }
}

/// The captioned pictures of a run, in the order in which it sees them.
#[derive(Debug, Clone)]
pub struct CaptionStream {
    sets: Arc<Vec<CaptionSet>>,
    reading: Reading,
    order: Order,
    context: usize,
    seed: u64,
    /// `data.pictures.shift`
    shift: u32,
}

impl CaptionStream {
    /// The stream of these sources (a share for each set), in the order that `seed` decides. A caption has at most
    /// `context` targets; what is beyond is cut off.
    pub(super) fn new(
        sets: Arc<Vec<CaptionSet>>,
        shares: &[Share],
        reading: Reading,
        context: usize,
        seed: u64,
        shift: u32,
    ) -> Self {
        let sources = sets.iter().zip(shares).map(|(set, &share)| OrderSource {
            tokens: set.tokens.documents(),
            share,
        });
        Self {
            // Of a source with as many tokens as it has pictures, in sequences of one token.
            order: Order::new(sources.collect(), 1, seed),
            sets,
            reading,
            context,
            seed,
            shift,
        }
    }

    /// Checks that there are enough pictures for a run of this many.
    ///
    /// # Errors
    ///
    /// When there are fewer.
    pub fn require(&self, pictures: u64) -> Result<(), DataError> {
        match self.order.sequences() {
            Some(available) if available < pictures => Err(DataError::TooFewPictures {
                needed: pictures,
                available,
            }),
            _ => Ok(()),
        }
    }

    /// Number of pictures, all epochs together; `None` if the sources repeat without end.
    pub fn pictures(&self) -> Option<u64> {
        self.order.sequences()
    }

    /// The captioned picture that a run sees at `index`, moved by up to `data.pictures.shift` pixels.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn captioned(&self, index: u64) -> Result<Captioned, DataError> {
        let place = self.order.place(index);
        let (caption, mut fitted) = self.sets[place.source].read(place.start)?;
        let [right, down] = self.moved(index);
        if (right, down) != (0, 0) {
            fitted.picture = fitted.picture.shifted(right, down);
        }
        Ok(self.reading.captioned(&caption, self.context, &fitted))
    }

    /// How far the picture at `index` moves, right and down: a pure function of the seed and the index.
    fn moved(&self, index: u64) -> [isize; 2] {
        let mut hasher = Sha256::new();
        for part in [self.seed, index] {
            hasher.update(part.to_le_bytes());
        }
        let hash = hasher.finalize();
        let choices = u64::from(2 * self.shift + 1);
        std::array::from_fn(|direction| {
            let bytes = std::array::from_fn(|byte| hash[direction * 8 + byte]);
            let number = u128::from(u64::from_le_bytes(bytes)) * u128::from(choices);
            (number >> 64) as isize - self.shift as isize
        })
    }
}

/// The held-out captions and pictures of one kind.
#[derive(Debug, Clone, PartialEq)]
pub struct HeldOutCaptions {
    /// Why they are held out.
    pub part: HeldOutPicture,
    /// In the order of their sources.
    pub captions: Vec<Captioned>,
}

/// What is held out of these sets: of each kind, all or at most `limit`, evenly spread, always the same. Kinds of which
/// there are none are left out.
///
/// # Errors
///
/// When they cannot be read.
pub(super) fn held_out(
    sets: &[CaptionSet],
    reading: &Reading,
    context: usize,
    limit: u64,
) -> Result<Vec<HeldOutCaptions>, DataError> {
    let mut parts = Vec::new();
    for part in [HeldOutPicture::Combination, HeldOutPicture::Concept] {
        let mut numbers = Vec::new();
        for (place, set) in sets.iter().enumerate() {
            for number in 0..set.tokens.documents() {
                if set.pictures.held_out(number)? == Some(part) {
                    numbers.push((place, number));
                }
            }
        }
        let count = numbers.len().min(limit.max(1) as usize);
        let captions = (0..count).map(|index| {
            let (place, number) = numbers[index * numbers.len() / count];
            let (caption, fitted) = sets[place].read(number)?;
            Ok(reading.captioned(&caption, context, &fitted))
        });
        let captions = captions.collect::<Result<Vec<_>, DataError>>()?;
        if !captions.is_empty() {
            parts.push(HeldOutCaptions { part, captions });
        }
    }
    Ok(parts)
}
