//! The vision tower: patches → first encoder → second encoder.

use std::fmt;

use burn::module::{Module, Param};
use burn::tensor::{Device, Int, Tensor, TensorData};
use serde::{Deserialize, Serialize};

use super::gates::{gate, open};
use super::layer::TowerLayer;
use super::layer_norm::LayerNorm;
use super::picture::{Picture, patches};
use crate::config::{CHANNELS, VisionConfig};
use crate::parameters::{Axis, Initializer, ParameterSource, ParameterSpec, Role};
use firebox_kernels::{HIDDEN, Precision, linear_transposed};

/// ε of the norms before and after the first encoder, whatever that of its layers is.
const OUTER_EPSILON: f64 = 1e-5;

/// The vision tower of Llama 3.2 (arXiv 2407.21783, section 7.1, as `transformers` computes it): a vision transformer over
/// all tiles of a picture at once, and a second one with gates on top of it.
///
/// With T tiles of P positions, of which the first stands for the class, filled up to P' = 8 ⌈P/8⌉ positions, and with m
/// intermediate layers:
///
/// 1. patches, `+ tanh(g₁) · pre` by arrangement and tile;
/// 2. the class in front, `+ (1 − tanh g₂) · position`, `+ tanh(g₂) · tile position` by arrangement, LayerNorm;
/// 3. zeros up to P', the first encoder; after layer i, state i;
/// 4. LayerNorm, `+ tanh(g₃) · post` by arrangement and tile, the second encoder;
/// 5. the output: the last state, then the values of the m intermediate states in turns.
///
/// A position is idle when it is filled up, or in a tile that is not in use. Pairs of idle positions do not see each other;
/// all others do.
#[derive(Module, Debug)]
pub struct Tower {
    /// `[width, 3, patch_size, patch_size]`
    pub patch_embedding: Param<Tensor<4>>,
    /// `[width]`
    pub class_embedding: Param<Tensor<1>>,
    /// `[positions, width]`
    pub position_embedding: Param<Tensor<2>>,
    /// Of both embeddings of positions, `[1]`.
    pub position_gate: Param<Tensor<1>>,
    /// `[arrangements + 1, max_tiles · positions · width]`; no picture has the first arrangement.
    pub tile_position_embedding: Param<Tensor<2>>,
    /// Added to the patches, `[arrangements + 1, max_tiles · width]`.
    pub pre_tile_embedding: Param<Tensor<2>>,
    /// Its gate, `[1]`.
    pub pre_tile_gate: Param<Tensor<1>>,
    /// Added between the encoders, `[arrangements + 1, max_tiles · width]`.
    pub post_tile_embedding: Param<Tensor<2>>,
    /// Its gate, `[1]`.
    pub post_tile_gate: Param<Tensor<1>>,
    /// Before the first encoder.
    pub norm_before: LayerNorm,
    /// After it.
    pub norm_after: LayerNorm,
    /// The first encoder.
    pub layers: Vec<TowerLayer>,
    /// The second encoder.
    pub global_layers: Vec<TowerLayer>,
    #[module(skip)]
    config: VisionConfig,
    #[module(skip)]
    precision: Precision,
}

/// What a tower computes on the way, `[pictures, max_tiles, positions, values]` each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TowerPart {
    /// Patches, class and positions, after the norm before the first encoder.
    Embedded,
    /// The state after a layer of the first encoder, of filled positions.
    Layer(usize),
    /// The state before the second encoder, of filled positions.
    Encoded,
    /// The state after a layer of the second encoder, of filled positions.
    GlobalLayer(usize),
    /// The output.
    Output,
    /// The output, projected to the width of the decoder.
    Projected,
}

impl TowerPart {
    /// All parts of a tower, in execution order.
    pub fn all(config: &VisionConfig) -> Vec<Self> {
        let layers = (0..config.layers).map(Self::Layer);
        let global_layers = (0..config.global_layers).map(Self::GlobalLayer);
        let parts = [Self::Embedded].into_iter().chain(layers);
        let parts = parts.chain([Self::Encoded]).chain(global_layers);
        parts.chain([Self::Output, Self::Projected]).collect()
    }
}

impl fmt::Display for TowerPart {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedded => formatter.write_str("tower, embedding"),
            Self::Layer(layer) => write!(formatter, "tower, layer {layer}"),
            Self::Encoded => formatter.write_str("tower, norm between the encoders"),
            Self::GlobalLayer(layer) => write!(formatter, "tower, second encoder, layer {layer}"),
            Self::Output => formatter.write_str("tower, output"),
            Self::Projected => formatter.write_str("projection of the tower's output"),
        }
    }
}

impl Tower {
    /// Takes every parameter from `source`, under `path`.
    ///
    /// # Errors
    ///
    /// When the source does not have a parameter of the required path and shape.
    pub fn new<S: ParameterSource>(
        config: &VisionConfig,
        path: &str,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        let initializer = Initializer::Normal(config.initializer_range);
        let width = (Axis::Tower, config.width);
        let positions = (Axis::Positions, config.positions());
        let arrangements = (Axis::Arrangements, config.aspect_ratios.len() + 1);
        let pixels = (Axis::Pixels, config.patch_size);
        let name = |name: &str| format!("{path}.{name}");
        let table = |part: &str, values: usize, source: &mut S| {
            let dimensions = [arrangements, (Axis::Arrangement, values)];
            let (role, path) = (Role::TowerEmbedding, name(part));
            source.parameter(ParameterSpec::new(path, role, dimensions, initializer))
        };
        let encoder = |part: &str, layers: usize, gated: bool, source: &mut S| {
            let layer = |layer| {
                let path = format!("{path}.{part}.{layer}");
                TowerLayer::new(config, gated, &path, source)
            };
            (0..layers).map(layer).collect::<Result<Vec<_>, _>>()
        };
        let of_tiles = config.max_tiles * config.width;
        Ok(Self {
            patch_embedding: source.parameter(ParameterSpec::new(
                name("patch_embedding"),
                Role::Tower,
                [width, (Axis::Channels, CHANNELS), pixels, pixels],
                initializer,
            ))?,
            class_embedding: source.parameter(ParameterSpec::new(
                name("class_embedding"),
                Role::TowerEmbedding,
                [width],
                initializer,
            ))?,
            position_embedding: source.parameter(ParameterSpec::new(
                name("position_embedding"),
                Role::TowerEmbedding,
                [positions, width],
                initializer,
            ))?,
            position_gate: gate(name("position_gate"), Initializer::Zeros, source)?,
            tile_position_embedding: table(
                "tile_position_embedding",
                of_tiles * config.positions(),
                source,
            )?,
            pre_tile_embedding: table("pre_tile_embedding", of_tiles, source)?,
            pre_tile_gate: gate(name("pre_tile_gate"), Initializer::Zeros, source)?,
            post_tile_embedding: table("post_tile_embedding", of_tiles, source)?,
            post_tile_gate: gate(name("post_tile_gate"), Initializer::Zeros, source)?,
            norm_before: LayerNorm::new(config.width, OUTER_EPSILON, &name("norm_before"), source)?,
            norm_after: LayerNorm::new(config.width, OUTER_EPSILON, &name("norm_after"), source)?,
            layers: encoder("layers", config.layers, false, source)?,
            global_layers: encoder("global_layers", config.global_layers, true, source)?,
            config: config.clone(),
            precision: Precision::F32,
        })
    }

    /// The tower's configuration.
    pub fn config(&self) -> &VisionConfig {
        &self.config
    }

    /// Computes the products with weights at this precision from now on.
    pub(crate) fn set_precision(&mut self, precision: Precision) {
        self.precision = precision;
        for layer in self.layers.iter_mut().chain(&mut self.global_layers) {
            layer.attention.precision = precision;
            layer.feed_forward.precision = precision;
        }
    }

    /// What the tower makes of pictures, which do not see each other. `see` is called with each part on the way.
    ///
    /// # Shapes
    ///
    /// - output: `[pictures, max_tiles, positions, output_width]`
    ///
    /// # Panics
    ///
    /// When there is no picture, or one is not of the tower's sizes.
    pub fn forward(
        &self,
        pictures: &[&Picture],
        see: &mut impl FnMut(TowerPart, Tensor<4>) -> Tensor<4>,
    ) -> Tensor<4> {
        let config = &self.config;
        assert!(!pictures.is_empty(), "a tower sees at least one picture");
        for picture in pictures {
            if let Err(rule) = picture.check(config) {
                panic!("a picture {rule}");
            }
        }
        let device = self.class_embedding.lazy_device();
        let (count, tiles, width) = (pictures.len(), config.max_tiles, config.width);
        let (positions, filled) = (config.positions(), config.filled_positions());
        let arrangements = pictures.iter().map(|picture| picture.arrangement as i32);
        let arrangements: Vec<i32> = arrangements.collect();
        let arrangements = Tensor::<1, Int>::from_ints(arrangements.as_slice(), &device);

        let embedded = self.embedded(pictures, &arrangements, &device);
        let embedded = see(TowerPart::Embedded, embedded);
        let zeros = Tensor::zeros([count, tiles, filled - positions, width], &device);
        let x = Tensor::cat(vec![embedded, zeros], 2);
        let mut x = x.reshape([count * tiles * filled, width]);
        let bias = self.bias(pictures, &device);
        let tiled = |x: &Tensor<2>| x.clone().reshape([count, tiles, filled, width]);
        let rows = |x: Tensor<4>| x.reshape([count * tiles * filled, width]);

        let mut states = Vec::with_capacity(self.layers.len());
        for (number, layer) in self.layers.iter().enumerate() {
            let state = tiled(&layer.forward(x, &bias));
            x = rows(see(TowerPart::Layer(number), state));
            let wanted = config.intermediate_layers.contains(&number);
            states.push(wanted.then(|| x.clone()));
        }
        let x = tiled(&self.norm_after.forward(x));
        let x = x + self.by_tile(
            &self.post_tile_embedding,
            &self.post_tile_gate,
            &arrangements,
        );
        let mut x = rows(see(TowerPart::Encoded, x));
        for (number, layer) in self.global_layers.iter().enumerate() {
            let state = tiled(&layer.forward(x, &bias));
            x = rows(see(TowerPart::GlobalLayer(number), state));
        }

        let intermediate = config.intermediate_layers.iter().map(|&layer| {
            let state = states[layer].clone().expect("the state after a layer");
            state.reshape([count * tiles * filled, width, 1])
        });
        let intermediate = Tensor::cat(intermediate.collect(), 2);
        let others = width * config.intermediate_layers.len();
        let intermediate = intermediate.reshape([count * tiles * filled, others]);
        let output = Tensor::cat(vec![x, intermediate], 1);
        let output = output.reshape([count, tiles, filled, width + others]);
        see(TowerPart::Output, output.narrow(2, 0, positions))
    }

    /// Patches, class and positions, `[pictures, max_tiles, positions, width]`.
    fn embedded(
        &self,
        pictures: &[&Picture],
        arrangements: &Tensor<1, Int>,
        device: &Device,
    ) -> Tensor<4> {
        let config = &self.config;
        let (count, tiles, width) = (pictures.len(), config.max_tiles, config.width);
        let positions = config.positions();
        let of_patch = CHANNELS * config.patch_size.pow(2);
        let rows = count * tiles * (positions - 1);
        let patches = TensorData::new(patches(pictures, config), [rows, of_patch]);
        let patches = Tensor::from_data(patches, device);
        let matrix = self.patch_embedding.val().reshape([width, of_patch]);
        let x = linear_transposed(patches, matrix, self.precision);
        let x = x.reshape([count, tiles, positions - 1, width]);
        let x = x + self.by_tile(&self.pre_tile_embedding, &self.pre_tile_gate, arrangements);

        let class = self.class_embedding.val().reshape([1, 1, 1, width]);
        let class = class.expand([count, tiles, 1, width]);
        let x = Tensor::cat(vec![class, x], 2);
        let gate: Tensor<4> = open(&self.position_gate);
        let position = self
            .position_embedding
            .val()
            .reshape([1, 1, positions, width]);
        let of_tile = self
            .tile_position_embedding
            .val()
            .select(0, arrangements.clone());
        let of_tile = of_tile.reshape([count, tiles, positions, width]);
        let x = x + position * (gate.clone().neg().add_scalar(1.0)) + of_tile * gate;
        let x = self
            .norm_before
            .forward(x.reshape([count * tiles * positions, width]));
        x.reshape([count, tiles, positions, width])
    }

    /// What is added to every position of a tile, `[pictures, max_tiles, 1, width]`.
    fn by_tile(
        &self,
        table: &Param<Tensor<2>>,
        gate: &Param<Tensor<1>>,
        arrangements: &Tensor<1, Int>,
    ) -> Tensor<4> {
        let [count] = arrangements.dims();
        let rows = table.val().select(0, arrangements.clone());
        let rows = rows.reshape([count, self.config.max_tiles, 1, self.config.width]);
        rows * open(gate)
    }

    /// What is added to the scores, `[pictures, positions, positions]` of all filled positions of all tiles.
    fn bias(&self, pictures: &[&Picture], device: &Device) -> Tensor<3> {
        let config = &self.config;
        let (positions, filled) = (config.positions(), config.filled_positions());
        let idle = pictures.iter().flat_map(|picture| {
            let of_tile =
                |&used: &bool| (0..filled).map(move |place| f32::from(!used || place >= positions));
            picture.used.iter().flat_map(of_tile)
        });
        let idle: Vec<f32> = idle.collect();
        let all = config.max_tiles * filled;
        let idle = TensorData::new(idle, [pictures.len(), all, 1]);
        let idle = Tensor::<3>::from_data(idle, device);
        idle.clone().mul_scalar(HIDDEN) * idle.swap_dims(1, 2)
    }
}
