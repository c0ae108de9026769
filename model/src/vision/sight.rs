//! What the tokens of a pass see of pictures.

use std::ops::Range;
use std::sync::Arc;

use burn::tensor::{Device, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::cross_attention::LayerKeys;
use super::picture::Picture;
use crate::config::VisionConfig;
use firebox_kernels::HIDDEN;

/// The pictures of the rows of a batch, and which of their tiles each token sees.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PictureBatch {
    /// Places for pictures of a row, at least one.
    pub slots: usize,
    /// `rows · slots` pictures; `None` in an empty place.
    pub pictures: Vec<Option<Picture>>,
    /// `rows · length · slots · max_tiles` flags: whether a token sees a tile.
    pub visible: Vec<bool>,
}

/// What the tokens of a pass see of pictures; made once, for all layers that attend to pictures.
#[derive(Debug, Clone)]
pub struct Sight {
    /// 1 for a token that sees a tile, 0 for others, `[tokens, 1]`.
    pub(super) see: Tensor<2>,
    pub(super) view: View,
}

/// Where keys and values come from, and what is hidden of them.
#[derive(Debug, Clone)]
pub(super) enum View {
    /// From the states of pictures.
    States(Box<States>),
    /// From the keys and values that sequences have, in the order of their rows.
    Cached(Vec<Glance>),
}

/// States of pictures that keys and values are computed from.
#[derive(Debug, Clone)]
pub(super) struct States {
    /// `[batch, keys, d_model]`
    pub(super) states: Tensor<3>,
    /// What is added to the scores, `[batch, length, keys]`.
    pub(super) bias: Tensor<3>,
}

/// What some of a pass's tokens, those of one sequence, see.
#[derive(Debug, Clone)]
pub(crate) struct Glance {
    pub(super) rows: Range<usize>,
    pub(super) pictures: Arc<PictureKeys>,
    /// `[1, rows, keys]`
    pub(super) bias: Tensor<3>,
}

/// The keys and values of a sequence's pictures in every layer that attends to pictures, written once.
#[derive(Debug, Clone)]
pub struct PictureKeys {
    /// By the layer's index.
    pub(crate) layers: Vec<(usize, LayerKeys)>,
    /// Which tiles of each picture are in use.
    pub(crate) used: Vec<Vec<bool>>,
    /// Positions of a tile.
    pub(crate) positions: usize,
    pub(crate) device: Device,
    /// What they were made of; kept where other ranks have to make theirs of it.
    pub(crate) pictures: Vec<Picture>,
}

/// Follows a text token by token, to say which pictures each token sees: the one of the last image token, and with it those of
/// the image tokens directly before that one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gaze {
    seen: Range<usize>,
    on_image: bool,
}

impl Gaze {
    /// After some tokens, with image tokens at these places.
    pub(crate) fn after(places: &[usize], tokens: usize) -> Self {
        let mut gaze = Self::default();
        let mut before = None;
        for &place in places {
            gaze.on_image = before.is_some_and(|before| before + 1 == place);
            gaze.next(true);
            before = Some(place);
        }
        gaze.on_image = before.is_some_and(|before| before + 1 == tokens);
        gaze
    }

    /// The pictures that the next token sees, by their place in the text.
    pub fn next(&mut self, is_image: bool) -> Range<usize> {
        if is_image {
            if !self.on_image {
                self.seen.start = self.seen.end;
            }
            self.seen.end += 1;
        }
        self.on_image = is_image;
        self.seen.clone()
    }
}

impl PictureBatch {
    /// Pictures of a single text, whose tokens see those of the image tokens before them: see [`Gaze`].
    pub fn of_text(pictures: Vec<Picture>, tokens: &[u32], image_token: u32) -> Self {
        let mut gaze = Gaze::default();
        let visible = tokens.iter().flat_map(|&id| {
            let seen = gaze.next(id == image_token);
            let of_picture = |(number, picture): (usize, &Picture)| {
                let sees = seen.contains(&number);
                picture
                    .used
                    .iter()
                    .map(|&used| sees && used)
                    .collect::<Vec<bool>>()
            };
            pictures
                .iter()
                .enumerate()
                .flat_map(of_picture)
                .collect::<Vec<bool>>()
        });
        Self {
            visible: visible.collect(),
            slots: pictures.len(),
            pictures: pictures.into_iter().map(Some).collect(),
        }
    }

    /// Checks the sizes of the pictures, and that no token sees what is not there.
    ///
    /// # Errors
    ///
    /// A sentence.
    pub fn check(&self, [rows, length]: [usize; 2], config: &VisionConfig) -> Result<(), String> {
        let tiles = config.max_tiles;
        let (places, flags) = (rows * self.slots, rows * length * self.slots * tiles);
        if (self.pictures.len(), self.visible.len()) != (places, flags) {
            return Err(format!(
                "{} places for pictures and {} flags of visible tiles; expected {places} and {flags}",
                self.pictures.len(),
                self.visible.len()
            ));
        }
        for (place, picture) in self.pictures.iter().enumerate() {
            if let Some(picture) = picture {
                let named = |rule| format!("picture {place} {rule}");
                picture.check(config).map_err(named)?;
            }
        }
        for (place, flags) in self.visible.chunks(tiles).enumerate() {
            let (token, slot) = (place / self.slots, place % self.slots);
            let picture = &self.pictures[token / length * self.slots + slot];
            if picture.is_none() && flags.contains(&true) {
                return Err(format!(
                    "token {} of row {} sees the empty place {slot}",
                    token % length,
                    token / length
                ));
            }
        }
        Ok(())
    }
}

impl Sight {
    /// That of a batch, given the states of all its places, `[rows, slots · max_tiles · positions, d_model]`.
    pub(super) fn of_batch(batch: &PictureBatch, states: Tensor<3>, config: &VisionConfig) -> Self {
        let device = states.device();
        let [rows, keys, _] = states.dims();
        let tiles = batch.slots * config.max_tiles;
        let length = batch.visible.len() / (rows * tiles);
        let see = batch.visible.chunks(tiles);
        let see = see.map(|flags| f32::from(flags.contains(&true)));
        let see: Vec<f32> = see.collect();
        let bias = bias(
            &batch.visible,
            [rows, length, tiles],
            config.positions(),
            &device,
        );
        debug_assert_eq!(bias.dims(), [rows, length, keys]);
        Self {
            see: Tensor::from_data(TensorData::new(see, [rows * length, 1]), &device),
            view: View::States(Box::new(States { states, bias })),
        }
    }

    /// The states that keys and values are computed from, `[batch, keys, d_model]`; `None` where they are cached.
    pub fn states(&self) -> Option<&Tensor<3>> {
        match &self.view {
            View::States(of) => Some(&of.states),
            View::Cached(_) => None,
        }
    }

    /// That of a pass of `rows` tokens of several sequences, of which some see pictures.
    pub(crate) fn of_glances(rows: usize, glances: Vec<Glance>, device: &Device) -> Option<Self> {
        if glances.is_empty() {
            return None;
        }
        let mut see = vec![0.0; rows];
        for glance in &glances {
            see[glance.rows.clone()].fill(1.0);
        }
        Some(Self {
            see: Tensor::from_data(TensorData::new(see, [rows, 1]), device),
            view: View::Cached(glances),
        })
    }
}

/// Only what was computed once is the same.
impl PartialEq for PictureKeys {
    fn eq(&self, other: &Self) -> bool {
        std::ptr::eq(self, other)
    }
}

impl PictureKeys {
    /// Number of pictures.
    pub fn pictures(&self) -> usize {
        self.used.len()
    }

    /// Bytes of its keys and values.
    pub fn bytes(&self) -> usize {
        let tensors = self
            .layers
            .iter()
            .flat_map(|(_, layer)| [&layer.keys, &layer.values]);
        let bytes = tensors.map(|tensor| tensor.shape().num_elements() * tensor.dtype().size());
        bytes.sum()
    }

    pub(super) fn layer(&self, layer: usize) -> LayerKeys {
        let mut layers = self.layers.iter();
        let (_, keys) = layers
            .find(|(index, _)| *index == layer)
            .expect("a layer that attends to pictures");
        keys.clone()
    }

    /// What tokens see, given the pictures that each sees; in rows from `first` on. Tokens that see nothing are no part of
    /// it.
    pub(crate) fn glance(self: &Arc<Self>, seen: &[Range<usize>], first: usize) -> Option<Glance> {
        // Image tokens come before what sees them, so that blind tokens are the first ones.
        let sees = |seen: &Range<usize>| {
            let mut used = self.used.iter().enumerate();
            used.any(|(number, used)| seen.contains(&number) && used.contains(&true))
        };
        let blind = seen.iter().take_while(|seen| !sees(seen)).count();
        let seen = &seen[blind..];
        if seen.is_empty() {
            return None;
        }
        let visible = seen.iter().flat_map(|seen| {
            let used = self.used.iter().enumerate();
            used.flat_map(move |(number, used)| {
                used.iter().map(move |&used| used && seen.contains(&number))
            })
        });
        let visible: Vec<bool> = visible.collect();
        let tiles = self.used.iter().map(Vec::len).sum();
        let bias = bias(
            &visible,
            [1, seen.len(), tiles],
            self.positions,
            &self.device,
        );
        Some(Glance {
            rows: first + blind..first + blind + seen.len(),
            pictures: self.clone(),
            bias,
        })
    }
}

/// What is added to the scores of `[rows, length, tiles]` flags, for each position of a tile: `[rows, length, keys]`.
fn bias(
    visible: &[bool],
    [rows, length, tiles]: [usize; 3],
    positions: usize,
    device: &Device,
) -> Tensor<3> {
    let values = visible
        .iter()
        .map(|&visible| if visible { 0.0 } else { HIDDEN });
    let values: Vec<f32> = values.collect();
    let flags = Tensor::<4>::from_data(TensorData::new(values, [rows, length, tiles, 1]), device);
    let all = flags.expand([rows, length, tiles, positions]);
    all.reshape([rows, length, tiles * positions])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbouring_images_are_seen_together() {
        let seen = |images: &[bool]| {
            let mut gaze = Gaze::default();
            let all = images.iter().map(|&image| gaze.next(image));
            all.collect::<Vec<_>>()
        };
        const I: bool = true;
        const T: bool = false;
        assert_eq!(seen(&[T, I, T, T]), [0..0, 0..1, 0..1, 0..1]);
        assert_eq!(seen(&[I, T, I, T]), [0..1, 0..1, 1..2, 1..2]);
        assert_eq!(
            seen(&[T, I, I, T, I, T]),
            [0..0, 0..1, 0..2, 0..2, 2..3, 2..3]
        );
    }
}
