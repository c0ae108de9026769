//! Pictures: a tower that reads them, and layers of the decoder that attend to what it makes of them.
//!
//! The decoder knows of pictures only states, `[batch, keys, d_model]`, and which of them a token sees ([`Sight`]). A model
//! of text alone has neither tower nor such layers, and a text without pictures passes them over.

mod block;
mod cross_attention;
mod gates;
mod layer;
mod layer_norm;
mod picture;
mod sight;
#[cfg(test)]
mod tests;
mod tower;

use burn::module::Module;
use burn::tensor::{Int, Tensor};

pub use block::CrossBlock;
pub use cross_attention::{CrossAttention, LayerKeys};
pub use gates::Gates;
pub use layer::{TowerAttention, TowerFeedForward, TowerLayer};
pub use layer_norm::LayerNorm;
pub use picture::Picture;
pub use sight::{Gaze, PictureBatch, PictureKeys, Sight};
pub use tower::{Tower, TowerPart};

use crate::config::{ModelConfig, VisionConfig};
use crate::linear::Linear;
use crate::parameters::{Axis, Initializer, ParameterSource, ParameterSpec, Role};
use firebox_kernels::Precision;

/// The tower, and the projection of its output to the width of the decoder.
#[derive(Module, Debug)]
pub struct VisionEncoder {
    /// The tower.
    pub tower: Tower,
    /// `[output_width, d_model]`, with a bias.
    pub projector: Linear,
    #[module(skip)]
    precision: Precision,
}

impl VisionEncoder {
    /// Takes every parameter from `source`, under `vision`.
    ///
    /// # Errors
    ///
    /// When the source does not have a parameter of the required path and shape.
    pub fn new<S: ParameterSource>(
        config: &ModelConfig,
        vision: &VisionConfig,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        let projector = ParameterSpec::new(
            "vision.projector",
            Role::Tower,
            [
                (Axis::TowerOutput, vision.output_width()),
                (Axis::Model, config.d_model),
            ],
            Initializer::Normal(vision.initializer_range),
        );
        Ok(Self {
            tower: Tower::new(vision, "vision.tower", source)?,
            projector: Linear::new(projector, true, source)?,
            precision: Precision::F32,
        })
    }

    /// Computes the products with weights at this precision from now on.
    pub(crate) fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
        self.tower.set_precision(precision);
    }

    /// What cross-attention takes keys and values from, of each picture by itself; `see` is called with each part of the
    /// tower, and returns what the later parts are given.
    ///
    /// # Shapes
    ///
    /// - output: `[pictures, max_tiles · positions, d_model]`
    ///
    /// # Panics
    ///
    /// As [`Tower::forward`].
    pub fn states(
        &self,
        pictures: &[&Picture],
        see: &mut impl FnMut(TowerPart, Tensor<4>) -> Tensor<4>,
    ) -> Tensor<3> {
        let output = self.tower.forward(pictures, see);
        let [count, tiles, positions, width] = output.dims();
        let rows = output.reshape([count * tiles * positions, width]);
        let projected = self.projector.forward(rows, self.precision);
        let [_, d_model] = projected.dims();
        let projected = projected.reshape([count, tiles, positions, d_model]);
        let projected = see(TowerPart::Projected, projected);
        projected.reshape([count, tiles * positions, d_model])
    }

    /// What the tokens of a batch see. Empty places are not computed: their states are zeros, which nobody sees.
    ///
    /// # Panics
    ///
    /// When the batch has no picture, or one is not of the tower's sizes.
    pub fn sight(
        &self,
        batch: &PictureBatch,
        see: &mut impl FnMut(TowerPart, Tensor<4>) -> Tensor<4>,
    ) -> Sight {
        Sight::of_batch(batch, self.batch_states(batch, see), self.tower.config())
    }

    /// What the tokens of rows of a length see where all of them see all of these pictures, of which each is computed once.
    ///
    /// # Panics
    ///
    /// When there is no picture, or one is not of the tower's sizes.
    pub fn sight_of_all(
        &self,
        pictures: &[Picture],
        [rows, length]: [usize; 2],
        see: &mut impl FnMut(TowerPart, Tensor<4>) -> Tensor<4>,
    ) -> Sight {
        let all: Vec<&Picture> = pictures.iter().collect();
        let states = self.states(&all, see);
        let [count, keys, d_model] = states.dims();
        let states = states.reshape([1, count * keys, d_model]);
        let used: Vec<bool> = pictures
            .iter()
            .flat_map(|picture| picture.used.iter().copied())
            .collect();
        let batch = PictureBatch {
            slots: count,
            visible: used.repeat(rows * length),
            pictures: Vec::new(),
        };
        Sight::of_batch(&batch, states.repeat_dim(0, rows), self.tower.config())
    }

    /// The keys and values of the pictures of a text in these layers.
    pub(crate) fn look<'a>(
        &self,
        pictures: &[Picture],
        layers: impl Iterator<Item = (usize, &'a CrossBlock)>,
    ) -> Vec<(usize, LayerKeys)> {
        let all: Vec<&Picture> = pictures.iter().collect();
        let states = self.states(&all, &mut |_, values| values);
        let [count, keys, d_model] = states.dims();
        let states = states.reshape([1, count * keys, d_model]);
        let keys = |(layer, block): (usize, &CrossBlock)| {
            (layer, block.cross_attention.keys(states.clone()))
        };
        layers.map(keys).collect()
    }

    /// The states of all places of a batch, `[rows, slots · max_tiles · positions, d_model]`.
    fn batch_states(
        &self,
        batch: &PictureBatch,
        see: &mut impl FnMut(TowerPart, Tensor<4>) -> Tensor<4>,
    ) -> Tensor<3> {
        let pictures: Vec<&Picture> = batch.pictures.iter().flatten().collect();
        let states = self.states(&pictures, see);
        let [count, keys, d_model] = states.dims();
        let places = batch.pictures.len();
        let states = match count == places {
            true => states,
            false => {
                let nothing = Tensor::zeros([1, keys, d_model], &states.device());
                let all = Tensor::cat(vec![states, nothing], 0);
                let mut next = 0..count as i32;
                let rows = batch.pictures.iter().map(|picture| match picture {
                    Some(_) => next.next().expect("as many as there are"),
                    None => count as i32,
                });
                let rows: Vec<i32> = rows.collect();
                let rows = Tensor::<1, Int>::from_ints(rows.as_slice(), &all.device());
                all.select(0, rows)
            }
        };
        states.reshape([places / batch.slots, batch.slots * keys, d_model])
    }
}
