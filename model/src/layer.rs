//! A layer of the decoder: one that attends to the text, or one that attends to pictures.

use burn::module::Module;

use crate::block::Block;
use crate::config::ModelConfig;
use crate::norm::RmsNorm;
use crate::parallel::{Shard, TensorGroup};
use crate::parameters::ParameterSource;
use crate::vision::CrossBlock;
use firebox_kernels::Precision;

/// A layer of the decoder, as configured.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // one per layer
pub enum Layer {
    /// It attends to the text.
    Text(Block),
    /// It attends to pictures.
    Cross(CrossBlock),
}

impl Layer {
    /// Takes the parameters of a layer from `source`, under `blocks.{layer}`.
    ///
    /// # Errors
    ///
    /// When the source does not have a parameter of the required path and shape.
    pub fn new<S: ParameterSource>(
        config: &ModelConfig,
        layer: usize,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        Ok(match config.layers[layer].is_cross() {
            false => Self::Text(Block::new(config, layer, source)?),
            true => Self::Cross(CrossBlock::new(config, layer, source)?),
        })
    }

    /// The block, if it attends to the text.
    pub fn text(&self) -> Option<&Block> {
        match self {
            Self::Text(block) => Some(block),
            Self::Cross(_) => None,
        }
    }

    /// The same, to be changed.
    pub fn text_mut(&mut self) -> Option<&mut Block> {
        match self {
            Self::Text(block) => Some(block),
            Self::Cross(_) => None,
        }
    }

    /// The block, if it attends to pictures.
    pub fn cross(&self) -> Option<&CrossBlock> {
        match self {
            Self::Text(_) => None,
            Self::Cross(block) => Some(block),
        }
    }

    /// The norm before attention.
    pub(crate) fn attention_norm(&self) -> &RmsNorm {
        match self {
            Self::Text(block) => &block.attention_norm,
            Self::Cross(block) => &block.attention_norm,
        }
    }

    /// Makes this one rank of a tensor-parallel group, with its share of heads and hidden widths.
    pub(crate) fn join(&mut self, group: &TensorGroup, shard: &Shard, config: &ModelConfig) {
        match self {
            Self::Text(block) => {
                block.attention.join(group, shard, config);
                block.feed_forward.join(group, shard);
            }
            Self::Cross(block) => {
                block.cross_attention.join(group);
                block.feed_forward.join(group);
            }
        }
    }

    /// Computes the products at this precision from now on; a router's stay f32.
    pub(crate) fn set_precision(&mut self, precision: Precision) {
        match self {
            Self::Text(block) => {
                block.attention.set_precision(precision);
                block.feed_forward.set_precision(precision);
            }
            Self::Cross(block) => {
                block.cross_attention.precision = precision;
                block.feed_forward.precision = precision;
            }
        }
    }
}
