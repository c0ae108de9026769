//! What pictures cost: the vision tower, the projection, and the layers that attend to pictures.

use serde::Serialize;

use crate::config::{CHANNELS, ModelConfig, VisionConfig};

/// Floating-point operations that pictures add; a multiplication and an addition count as two.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct PictureOperations {
    /// The tower and the projection, for one picture: products with weights and attention scores. Every tile counts, in use or
    /// not: all of them are computed.
    pub encoder: f64,
    /// Keys and values of one picture in all layers that attend to pictures.
    pub keys: f64,
    /// For a token that sees a single picture, in all those layers: queries, outputs, scores and feed-forwards.
    pub token: f64,
}

impl PictureOperations {
    /// Of a model; `None` for one of text alone.
    pub fn of(config: &ModelConfig) -> Option<Self> {
        let vision = config.vision.as_ref()?;
        let d_model = config.d_model as f64;
        let kv_width = (config.kv_heads * config.head_dim) as f64;
        let query_width = (config.heads * config.head_dim) as f64;
        let keys = vision.keys() as f64;
        let layers = config.cross_layers();
        let d_ffs = layers.filter_map(|layer| config.dense_d_ff(layer));
        let layers = config.cross_layers().count() as f64;
        let swiglus: f64 = d_ffs.map(|d_ff| 2.0 * 3.0 * d_model * d_ff as f64).sum();
        let projections = 2.0 * 2.0 * d_model * query_width;
        let scores = 2.0 * 2.0 * query_width * keys;
        Some(Self {
            encoder: encoder(vision, config.d_model),
            keys: layers * 2.0 * 2.0 * d_model * kv_width * keys,
            token: layers * (projections + scores) + swiglus,
        })
    }
}

fn encoder(vision: &VisionConfig, d_model: usize) -> f64 {
    let width = vision.width as f64;
    let tiles = vision.max_tiles as f64;
    let positions = tiles * vision.filled_positions() as f64;
    let heads = (vision.heads * vision.head_dim()) as f64;
    let patches = tiles * (vision.positions() - 1) as f64;
    let of_patch = (CHANNELS * vision.patch_size.pow(2)) as f64;
    let weights = 4.0 * width * heads + 2.0 * width * vision.d_ff as f64;
    let layer = 2.0 * positions * weights + 2.0 * 2.0 * positions * positions * heads;
    let layers = (vision.layers + vision.global_layers) as f64;
    let projection = vision.keys() as f64 * vision.output_width() as f64 * d_model as f64;
    layers * layer + 2.0 * (patches * of_patch * width + projection)
}

/// Parameters of the tower.
pub(super) fn tower(vision: &VisionConfig) -> u128 {
    let number = |n: usize| n as u128;
    let width = number(vision.width);
    let [tiles, positions] = [vision.max_tiles, vision.positions()].map(number);
    let arrangements = number(vision.aspect_ratios.len()) + 1;
    let patches = width * number(CHANNELS) * number(vision.patch_size).pow(2);
    let embeddings = width * (1 + positions);
    let by_arrangement = arrangements * tiles * width * (positions + 2);
    // Of positions, and of the tiles before and after the first encoder.
    let gates = 3;
    let outer_norms = 4 * width;
    let layer = layer(vision);
    let layers = number(vision.layers) * layer + number(vision.global_layers) * (layer + 2);
    patches + embeddings + by_arrangement + gates + outer_norms + layers
}

/// Parameters of a layer of the tower, without gates.
fn layer(vision: &VisionConfig) -> u128 {
    let [width, d_ff] = [vision.width, vision.d_ff].map(|n| n as u128);
    let heads = vision.heads as u128 * vision.head_dim() as u128;
    let norms = 4 * width;
    4 * width * heads + norms + (2 * width * d_ff + d_ff + width)
}

/// Parameters of the projection, its bias among them.
pub(super) fn projector(config: &ModelConfig) -> u128 {
    let of = |vision: &VisionConfig| (vision.output_width() as u128 + 1) * config.d_model as u128;
    config.vision.as_ref().map_or(0, of)
}

/// Parameters of all layers that attend to pictures.
pub(super) fn cross_attention(config: &ModelConfig) -> u128 {
    let number = |n: usize| n as u128;
    let [d_model, head_dim] = [config.d_model, config.head_dim].map(number);
    let widths = number(config.heads + config.kv_heads) * head_dim;
    let gates = 2;
    let of_layer = 2 * d_model * widths + 2 * d_model + 2 * head_dim + gates;
    let layers = config.cross_layers();
    let d_ffs = layers.filter_map(|layer| config.dense_d_ff(layer));
    let of_layers = d_ffs.map(|d_ff| of_layer + 3 * d_model * number(d_ff));
    of_layers.sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounting::{Accounting, Parameters};
    use crate::config::LayerConfig;
    use crate::language_model::LanguageModel;
    use crate::parameters::ParameterInfo;
    use crate::testing::tiny;

    /// Llama 3.2 11B, with tiles of this side.
    fn llama(tile_size: usize) -> ModelConfig {
        let text = ModelConfig {
            vocab_size: 128_256,
            d_model: 4096,
            heads: 32,
            kv_heads: 8,
            head_dim: 128,
            rotary_dim: 128,
            context_length: 131_072,
            layers: vec![LayerConfig::dense(14_336); 32],
            moe: None,
            ..tiny()
        };
        let all = [
            [1, 1],
            [1, 2],
            [1, 3],
            [1, 4],
            [2, 1],
            [2, 2],
            [3, 1],
            [4, 1],
        ];
        let vision = VisionConfig {
            width: 1280,
            d_ff: 5120,
            heads: 16,
            layers: 32,
            global_layers: 8,
            tile_size,
            patch_size: 14,
            max_tiles: 4,
            aspect_ratios: all.to_vec(),
            intermediate_layers: vec![3, 7, 15, 23, 30],
            norm_epsilon: 1e-5,
            initializer_range: 0.02,
        };
        let layers = [3, 8, 13, 18, 23, 28, 33, 38];
        text.with_vision(vision, &layers, 14_336).unwrap()
    }

    #[test]
    fn the_published_model_has_the_published_numbers() {
        let parameters = Parameters::of(&llama(448));
        assert_eq!(parameters.total(), 10_642_941_475);
        assert_eq!(parameters.tower, 836_288_019);
        assert_eq!(parameters.projector, 31_461_376);
        assert_eq!(parameters.cross_attention, 1_744_898_064);
        let text = parameters.total() - parameters.tower;
        let text = text - parameters.projector - parameters.cross_attention;
        assert_eq!(text, 8_030_294_016);
        let vision = llama(448).vision.unwrap();
        assert_eq!(32 * layer(&vision), 629_514_240);
        assert_eq!(8 * (layer(&vision) + 2), 157_378_576);
        let larger = Parameters::of(&llama(560));
        assert_eq!(larger.total(), 10_670_220_835);
        assert_eq!(larger.tower, 863_567_379);
    }

    #[test]
    fn the_count_equals_the_parameters_of_a_built_model() {
        let config = llama(448);
        let cross: Vec<usize> = config.cross_layers().collect();
        let built = LanguageModel::parameter_list(&config);
        let of = |counts: &dyn Fn(&ParameterInfo) -> bool| {
            let parameters = built.iter().filter(|parameter| counts(parameter));
            parameters.map(ParameterInfo::elements).sum::<u128>()
        };
        let parameters = Parameters::of(&config);
        let all = of(&|_| true);
        assert_eq!(parameters.total(), all);
        let tiles = of(&|parameter| parameter.path == "vision.tower.tile_position_embedding");
        assert_eq!(tiles, 47_232_000);
        let tower = of(&|parameter| parameter.path.starts_with("vision.tower."));
        assert_eq!(parameters.tower, tower);
        let projector = of(&|parameter| parameter.path.starts_with("vision.projector."));
        assert_eq!(parameters.projector, projector);
        let layers = of(&|parameter| {
            parameter
                .layer()
                .is_some_and(|layer| cross.contains(&layer))
        });
        assert_eq!(parameters.cross_attention, layers);
    }

    #[test]
    fn operations_of_a_small_model_by_hand() {
        let vision = VisionConfig {
            width: 6,
            d_ff: 10,
            heads: 2,
            layers: 1,
            global_layers: 1,
            tile_size: 9,
            patch_size: 4,
            max_tiles: 2,
            aspect_ratios: vec![[1, 1]],
            intermediate_layers: vec![0],
            norm_epsilon: 1e-5,
            initializer_range: 0.02,
        };
        // d_model 24, four heads of 6 on two of keys and values.
        let config = tiny().with_vision(vision, &[1], 7).unwrap();
        let found = PictureOperations::of(&config).unwrap();
        // Five positions a tile, filled up to eight; four patches.
        let layer = 2 * 16 * (4 * 36 + 2 * 60) + 4 * 16 * 16 * 6;
        let encoder = 2 * layer + 2 * (8 * 48 * 6 + 10 * 12 * 24);
        assert_eq!(found.encoder, f64::from(encoder));
        assert_eq!(found.keys, f64::from(2 * 2 * 24 * 12 * 10));
        let token = 2 * 2 * 24 * 24 + 2 * 2 * 24 * 10 + 2 * 3 * 24 * 7;
        assert_eq!(found.token, f64::from(token));
        assert_eq!(PictureOperations::of(&tiny()), None);
        // A token that sees no picture costs what it does in the text model, but for rows of the embedding.
        let (with, without) = (Accounting::of(&config), Accounting::of(&tiny()));
        assert_eq!(with.operations, without.operations);
    }
}
