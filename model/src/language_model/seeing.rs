//! A model that sees pictures: what it makes of them, how it comes of a text model, and what is left of it without them.

use std::convert::Infallible;

use burn::module::Param;
use burn::tensor::{Int, Tensor};

use super::{LanguageModel, Trace, VisionTrace};
use crate::batch::Batch;
use crate::config::{IMAGE_ROWS, ModelConfig};
use crate::layer::Layer;
use crate::layout::Placement;
use crate::observer::Observer;
use crate::parameters::{
    Axis, Initializer, ParameterSource, ParameterSpec, RandomParameters, Role,
};
use crate::parts::{LayerPart, Part};
use crate::vision::{Picture, PictureBatch, PictureKeys, Sight, TowerPart, VisionEncoder};

/// Records what the layers that attend to pictures ask with.
pub(crate) struct CrossInputs<'a> {
    config: &'a ModelConfig,
    /// Of each layer, after its norm, `[tokens, d_model]`.
    found: Vec<(usize, Tensor<2>)>,
}

impl<'a> CrossInputs<'a> {
    /// Nothing yet of a model.
    pub(crate) fn new(config: &'a ModelConfig) -> Self {
        Self {
            config,
            found: Vec::new(),
        }
    }
}

impl Observer for CrossInputs<'_> {
    fn output(&mut self, layer_part: LayerPart, computed: Tensor<2>) -> Tensor<2> {
        if let (Some(layer), Part::AttentionNorm) = (layer_part.layer, layer_part.part)
            && self.config.layers[layer].is_cross()
        {
            self.found.push((layer, computed.clone()));
        }
        computed
    }
}

impl LanguageModel {
    /// The same of tokens that see pictures, and what the tower makes of these.
    ///
    /// # Panics
    ///
    /// When the model has no tower, or the batch has no pictures or does not [fit](PictureBatch::check).
    pub fn trace_seeing(
        &self,
        tokens: Tensor<2, Int>,
        placement: &Placement,
        pictures: &PictureBatch,
    ) -> Trace {
        let (sight, vision) = self.sight_traced(pictures);
        let placement = placement.clone().seeing(sight);
        Trace {
            vision: Some(vision),
            ..self.trace(tokens, &placement)
        }
    }

    /// What the tokens of a batch see, and what the tower computes on the way.
    pub(crate) fn sight_traced(&self, pictures: &PictureBatch) -> (Sight, VisionTrace) {
        let mut parts = Vec::new();
        let mut see = |part, values: Tensor<4>| {
            // The projection of pictures is part of the states, which have empty places too.
            if part != TowerPart::Projected {
                parts.push((part, values.clone()));
            }
            values
        };
        let sight = self.encoder().sight(pictures, &mut see);
        let states = sight.states().expect("the states of a batch").clone();
        (sight, VisionTrace { parts, states })
    }

    /// What the tokens of a batch see.
    ///
    /// # Panics
    ///
    /// As [`trace_seeing`](Self::trace_seeing).
    pub fn sight(&self, pictures: &PictureBatch) -> Sight {
        self.encoder().sight(pictures, &mut |_, values| values)
    }

    /// What the tokens of rows of a length see where all of them see all of these pictures; `see` is called with each part of
    /// the tower, and returns what the later parts are given.
    ///
    /// # Panics
    ///
    /// When the model has no tower, there is no picture, or one is not of the tower's sizes.
    pub fn sight_of_all(
        &self,
        pictures: &[Picture],
        shape: [usize; 2],
        see: &mut impl FnMut(TowerPart, Tensor<4>) -> Tensor<4>,
    ) -> Sight {
        self.encoder().sight_of_all(pictures, shape, see)
    }

    /// The keys and values of the pictures of a text in every layer that attends to pictures. A rank has those of its own
    /// layers and heads, and keeps the pictures, from which others make theirs.
    ///
    /// # Panics
    ///
    /// When the model sees no pictures, there is no picture, or one is not of the tower's sizes.
    pub fn look(&self, pictures: &[Picture]) -> PictureKeys {
        let vision = self.config.vision.as_ref().expect("a model with a tower");
        let first = self.shard.as_ref().map_or(0, |shard| shard.layers().start);
        let layers = self.blocks.iter().enumerate();
        let layers = layers.filter_map(|(place, block)| Some((first + place, block.cross()?)));
        let encoder = self.vision.as_ref();
        PictureKeys {
            layers: encoder.map_or_else(Vec::new, |encoder| encoder.look(pictures, layers)),
            used: pictures
                .iter()
                .map(|picture| picture.used.clone())
                .collect(),
            positions: vision.positions(),
            device: self.device(),
            pictures: match &self.shard {
                Some(_) => pictures.to_vec(),
                None => Vec::new(),
            },
        }
    }

    /// How much the tokens of a batch attend to the pictures that they see: of each layer that attends to pictures, the
    /// layer's index and the mean of the weights of its heads, `[batch, sequence, keys]`. The keys are the positions of the
    /// tiles, tile by tile, the first one of each tile being that of the class. Those of blind tokens mean nothing.
    ///
    /// # Panics
    ///
    /// When no token of the batch sees a picture.
    pub fn attention_to_pictures(&self, batch: &Batch) -> Vec<(usize, Tensor<3>)> {
        let mut inputs = CrossInputs::new(&self.config);
        self.observed(batch.tokens.clone(), &batch.placement, &mut inputs);
        self.weights_of(inputs, &batch.placement)
    }

    /// The same of what was recorded in a pass of this rank's layers, whose tensor ranks all call this. A rank without layers
    /// that attend to pictures has none.
    pub(crate) fn weights_of(
        &self,
        inputs: CrossInputs,
        placement: &Placement,
    ) -> Vec<(usize, Tensor<3>)> {
        let first = self.shard.as_ref().map_or(0, |shard| shard.layers().start);
        let weights = inputs.found.into_iter().map(|(layer, input)| {
            let block = self.blocks[layer - first]
                .cross()
                .expect("a layer that attends to pictures");
            let sight = placement.sight().expect("a batch that sees pictures");
            let heads = self.config.heads;
            let weights = block.cross_attention.mean_weights(input, sight, heads);
            (layer, weights)
        });
        weights.collect()
    }

    /// The text model that is left without the tower, the layers that attend to pictures, and the rows of the embedding behind
    /// the vocabulary. For a text without pictures it gives the same logits, to the last bit.
    ///
    /// # Panics
    ///
    /// When this is one rank's part of a model.
    #[must_use]
    pub fn text_only(mut self) -> Self {
        assert!(self.shard.is_none(), "a whole model");
        let config = self.config.text_only();
        self.blocks.retain(|layer| layer.text().is_some());
        let rows = [0..config.vocab_size, 0..config.d_model];
        let embedding = self.embedding.take();
        Self {
            embedding: embedding.map(|table| table.map(|table| table.slice(rows))),
            vision: None,
            config,
            ..self
        }
    }

    fn encoder(&self) -> &VisionEncoder {
        self.vision.as_ref().expect("a model with a tower")
    }

    /// This text model with a tower and layers that attend to pictures, as `config` has them ([`ModelConfig::with_vision`] of
    /// the text model's). What is new is random, by the seed, but for the gates of those layers: they are 0, so that a text has
    /// the logits of the text model to the last bit, whether it sees pictures or not. A head that was tied to the embedding
    /// becomes a copy of it.
    ///
    /// # Panics
    ///
    /// When this is one rank's part of a model, or the configuration is not one of this text model with a tower.
    #[must_use]
    pub fn with_vision(mut self, config: &ModelConfig, seed: u64) -> Self {
        let text = ModelConfig {
            tied_embeddings: self.config.tied_embeddings,
            ..config.text_only()
        };
        assert!(self.shard.is_none() && text == self.config, "a text model");
        let vision = config.vision.as_ref().expect("a tower");
        let device = self.device();
        let random = &mut RandomParameters::new(seed, &device);
        let made: Result<(Tensor<2>, Vec<Layer>, VisionEncoder), Infallible> = (|| {
            let rows = ParameterSpec::new(
                "vision.image_rows",
                Role::Embedding,
                [
                    (Axis::Vocabulary, IMAGE_ROWS),
                    (Axis::Model, config.d_model),
                ],
                Initializer::Normal(config.initializer_range),
            );
            let rows = random.parameter(rows)?.val();
            let mut blocks = std::mem::take(&mut self.blocks).into_iter();
            let mut layers = Vec::with_capacity(config.layers.len());
            for layer in 0..config.layers.len() {
                layers.push(match config.layers[layer].is_cross() {
                    true => Layer::new(config, layer, random)?,
                    false => blocks.next().expect("as many as the text model has"),
                });
            }
            Ok((rows, layers, VisionEncoder::new(config, vision, random)?))
        })();
        let Ok((rows, blocks, encoder)) = made;
        let table = self.embedding.take().expect("a whole model").val().detach();
        let head = self.head.take();
        let head = head.unwrap_or_else(|| Param::from_tensor(table.clone().transpose()).into());
        let rows = rows.detach().cast(table.dtype());
        Self {
            embedding: Some(Param::from_tensor(Tensor::cat(vec![table, rows], 0))),
            blocks,
            head: Some(head),
            vision: Some(encoder),
            config: config.clone(),
            ..self
        }
    }
}
