//! Captioned pictures, and text beside them, with random access: as with text alone, the number of rows seen is all that a
//! resume needs.

use std::sync::Arc;

use firebox_image::{Fitted, Processor};
use firebox_model::batch::Sequence;
use firebox_model::captions::Captioned;
use firebox_model::vision::Picture;
use sha2::{Digest, Sha256};

use super::error::DataError;
use super::order::{Order, OrderSource};
use super::packing::window;
use super::pictures::PictureSet;
use super::shards::TokenSet;
use super::split::HeldOutPicture;
use crate::config::{PicturesConfig, Share};

/// Captions and their pictures: a document of the tokens belongs to the picture of the same number.
#[derive(Debug)]
pub(super) struct CaptionSet {
    pub tokens: TokenSet,
    pub pictures: PictureSet,
}

impl CaptionSet {
    /// The tokens of a caption, those that begin and end a document included.
    ///
    /// # Errors
    ///
    /// When they cannot be read.
    fn caption(&self, number: u64) -> Result<Vec<u32>, DataError> {
        let mut tokens = Vec::new();
        self.tokens
            .read(self.tokens.document(number)?.tokens, &mut tokens)?;
        Ok(tokens)
    }
}

/// The rows of a source of a run whose model sees pictures.
#[derive(Debug)]
pub(super) enum RowSet {
    /// Captions and their pictures, each pair a row.
    Captions(CaptionSet),
    /// Text, in sequences of the context.
    Text(TokenSet),
}

impl RowSet {
    /// The captions, if it has pictures.
    pub fn captions(&self) -> Option<&CaptionSet> {
        match self {
            Self::Captions(set) => Some(set),
            Self::Text(_) => None,
        }
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
    /// The token that ends a document, where there is text whose documents are to be seen by themselves.
    pub document_end: Option<u32>,
}

impl Reading {
    /// The picture as a model sees it.
    fn picture(&self, fitted: &Fitted) -> Picture {
        let tiles = self.processor.tiles(fitted);
        Picture {
            arrangement: tiles.aspect_ratio_id,
            used: (0..self.processor.max_tiles())
                .map(|tile| tile < tiles.used)
                .collect(),
            pixels: tiles.pixel_values,
        }
    }

    /// A caption behind its picture, or behind the token alone that stands for it.
    fn captioned(&self, caption: &[u32], context: usize, picture: Option<Picture>) -> Captioned {
        let end = self.document_end;
        Captioned::new(
            picture,
            self.image_token,
            caption,
            self.beginning,
            context,
            end,
        )
    }
}

/// The captioned pictures of a run, and the sequences of text beside them, in the order in which it sees them.
#[derive(Debug, Clone)]
pub struct CaptionStream {
    sets: Arc<Vec<RowSet>>,
    reading: Reading,
    order: Order,
    context: usize,
    seed: u64,
    shown: PicturesConfig,
}

impl CaptionStream {
    /// The stream of these sources (a share for each set), in the order that `seed` decides. A caption has at most
    /// `context` targets; what is beyond is cut off.
    pub(super) fn new(
        sets: Arc<Vec<RowSet>>,
        shares: &[Share],
        reading: Reading,
        context: usize,
        seed: u64,
        shown: PicturesConfig,
    ) -> Self {
        let sources = sets.iter().zip(shares).map(|(set, &share)| match set {
            // As if each caption were a token.
            RowSet::Captions(set) => OrderSource {
                tokens: set.tokens.documents(),
                sequence: 1,
                share,
            },
            RowSet::Text(set) => OrderSource {
                tokens: set.tokens(),
                sequence: context as u64,
                share,
            },
        });
        Self {
            order: Order::new(sources.collect(), seed),
            sets,
            reading,
            context,
            seed,
            shown,
        }
    }

    /// Checks that there are enough rows for a run of this many.
    ///
    /// # Errors
    ///
    /// When there are fewer.
    pub fn require(&self, rows: u64) -> Result<(), DataError> {
        match self.order.sequences() {
            Some(available) if available < rows => Err(DataError::TooFewRows {
                needed: rows,
                available,
            }),
            _ => Ok(()),
        }
    }

    /// Number of rows, all epochs together; `None` if the sources repeat without end.
    pub fn rows(&self) -> Option<u64> {
        self.order.sequences()
    }

    /// The row that a run sees at `index`: a sequence of text, or a caption behind its picture, which is moved by up to
    /// `data.pictures.shift` pixels or withheld.
    ///
    /// # Errors
    ///
    /// When it cannot be read.
    pub fn captioned(&self, index: u64) -> Result<Captioned, DataError> {
        let place = self.order.place(index);
        let set = match &self.sets[place.source] {
            RowSet::Captions(set) => set,
            RowSet::Text(set) => {
                let tokens = window(set, place)?;
                let end = self.reading.document_end;
                return Ok(Captioned {
                    sequence: Sequence::of_window(&tokens, self.context, end),
                    given: 0,
                    picture: None,
                });
            }
        };
        let chance = Chance::new(self.seed, index);
        let picture = match chance.is_below(self.shown.withheld) {
            true => None,
            false => {
                let mut fitted = set.pictures.read(place.start)?;
                let [right, down] = chance.moved(self.shown.shift);
                if (right, down) != (0, 0) {
                    fitted.picture = fitted.picture.shifted(right, down);
                }
                Some(self.reading.picture(&fitted))
            }
        };
        let caption = set.caption(place.start)?;
        Ok(self.reading.captioned(&caption, self.context, picture))
    }
}

/// Random numbers of a row, a pure function of the seed and the row's index.
struct Chance([u64; 3]);

impl Chance {
    fn new(seed: u64, index: u64) -> Self {
        let mut hasher = Sha256::new();
        for part in [seed, index] {
            hasher.update(part.to_le_bytes());
        }
        let hash = hasher.finalize();
        Self(std::array::from_fn(|number| {
            u64::from_le_bytes(std::array::from_fn(|byte| hash[number * 8 + byte]))
        }))
    }

    /// How far a picture moves, right and down.
    fn moved(&self, most: u32) -> [isize; 2] {
        let choices = u128::from(2 * most + 1);
        std::array::from_fn(|direction| {
            let number = u128::from(self.0[direction]) * choices;
            (number >> 64) as isize - most as isize
        })
    }

    /// Whether a number between 0 and 1 is below this one.
    fn is_below(&self, part: f64) -> bool {
        let number = (self.0[2] >> 11) as f64 / (1u64 << 53) as f64;
        number < part
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
            let set = &sets[place];
            let picture = reading.picture(&set.pictures.read(number)?);
            Ok(reading.captioned(&set.caption(number)?, context, Some(picture)))
        });
        let captions = captions.collect::<Result<Vec<_>, DataError>>()?;
        if !captions.is_empty() {
            parts.push(HeldOutCaptions { part, captions });
        }
    }
    Ok(parts)
}
