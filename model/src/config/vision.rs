//! A vision tower, and the layers that attend to what it makes of pictures.

use super::rules::{finite, require, size};
use super::{AttentionKind, ConfigError, FeedForwardKind, LARGEST_SIZE, LayerConfig, ModelConfig};

/// Colours of a pixel.
pub const CHANNELS: usize = 3;

/// Rows of the embedding beyond those of the vocabulary: the one of the image token, and spare ones.
pub const IMAGE_ROWS: usize = 8;

/// The shape of a vision tower: that of Llama 3.2's Mllama (arXiv 2407.21783, section 7), whose names `transformers` has in
/// `vision_config`.
#[derive(Debug, Clone, PartialEq)]
pub struct VisionConfig {
    /// Width of the tower.
    pub width: usize,
    /// Hidden width of its feed-forwards.
    pub d_ff: usize,
    /// Heads of its attention; a head has `width / heads` values, rounded down.
    pub heads: usize,
    /// Layers of the first encoder.
    pub layers: usize,
    /// Layers of the second encoder, whose branches have gates.
    pub global_layers: usize,
    /// Side of a tile, in pixels.
    pub tile_size: usize,
    /// Side of a patch, in pixels. What is left of a tile beyond its last whole patch is not read.
    pub patch_size: usize,
    /// The most tiles of a picture.
    pub max_tiles: usize,
    /// The arrangements of tiles, each rows and columns, by the numbers that pictures name them with, from 1 on.
    pub aspect_ratios: Vec<[usize; 2]>,
    /// The layers of the first encoder whose states are part of the output, in this order.
    pub intermediate_layers: Vec<usize>,
    /// Added to the variance in the norms of the layers.
    pub norm_epsilon: f64,
    /// Standard deviation of the initial weights.
    pub initializer_range: f64,
}

impl VisionConfig {
    /// Patches along a side of a tile.
    pub fn patches_per_side(&self) -> usize {
        self.tile_size / self.patch_size
    }

    /// Positions of a tile (P): its patches, and one for the class.
    pub fn positions(&self) -> usize {
        self.patches_per_side().pow(2) + 1
    }

    /// The same, filled up to a multiple of 8 (P').
    pub fn filled_positions(&self) -> usize {
        self.positions().next_multiple_of(8)
    }

    /// Values of a head.
    pub fn head_dim(&self) -> usize {
        self.width / self.heads
    }

    /// Values of a position of the output.
    pub fn output_width(&self) -> usize {
        self.width * (1 + self.intermediate_layers.len())
    }

    /// Positions of a picture in the output, which cross-attention has as keys.
    pub fn keys(&self) -> usize {
        self.max_tiles * self.positions()
    }

    /// Values of a picture's pixels, those of tiles that are not in use among them.
    pub fn pixels(&self) -> usize {
        self.max_tiles * CHANNELS * self.tile_size.pow(2)
    }

    fn validate(&self) -> Result<(), ConfigError> {
        for (key, value) in [
            ("vision.width", self.width),
            ("vision.d_ff", self.d_ff),
            ("vision.heads", self.heads),
            ("vision.layers", self.layers),
            ("vision.tile_size", self.tile_size),
            ("vision.patch_size", self.patch_size),
            ("vision.max_tiles", self.max_tiles),
        ] {
            size(key, value)?;
        }
        let at_most = |key, value, most, what: &str| {
            let rule = format!("must be at most {most}");
            require(value <= most, key, value, rule, what)
        };
        at_most(
            "vision.heads",
            self.heads,
            self.width,
            "a head has vision.width / vision.heads values",
        )?;
        at_most(
            "vision.patch_size",
            self.patch_size,
            self.tile_size,
            "a tile has at least one patch",
        )?;
        for (key, value) in [
            ("vision.layers", self.layers),
            ("vision.global_layers", self.global_layers),
        ] {
            at_most(key, value, 4096, "towers have some dozens of layers")?;
        }
        at_most("vision.tile_size", self.tile_size, 1 << 14, "448 is common")?;
        at_most("vision.max_tiles", self.max_tiles, 1 << 10, "4 is common")?;
        self.validate_lists()?;
        finite("vision.norm_epsilon", self.norm_epsilon, true)?;
        finite("vision.initializer_range", self.initializer_range, true)
    }

    fn validate_lists(&self) -> Result<(), ConfigError> {
        let fits = |&[rows, columns]: &[usize; 2]| {
            let tiles = rows.checked_mul(columns);
            tiles.is_some_and(|tiles| (1..=self.max_tiles).contains(&tiles))
        };
        require(
            !self.aspect_ratios.is_empty() && self.aspect_ratios.iter().all(fits),
            "vision.aspect_ratios",
            format!("{:?}", self.aspect_ratios),
            format!(
                "must be pairs of rows and columns of 1 to vision.max_tiles = {} tiles, at least one pair",
                self.max_tiles
            ),
            "[[1, 1]] is a single tile",
        )?;
        let layers = &self.intermediate_layers;
        require(
            !layers.is_empty() && layers.iter().all(|&layer| layer < self.layers),
            "vision.intermediate_layers",
            format!("{layers:?}"),
            format!(
                "must name at least one layer, from 0 to {}",
                self.layers - 1
            ),
            "[0] makes the state after the first layer part of the output",
        )?;
        let width = self.width.saturating_mul(1 + layers.len());
        require(
            width <= LARGEST_SIZE,
            "vision.intermediate_layers",
            format!("{} layers", layers.len()),
            format!("make an output of {width} values, and {LARGEST_SIZE} are the most"),
            "name fewer layers",
        )
    }
}

impl LayerConfig {
    /// Cross-attention before a SwiGLU of this width.
    pub const fn cross(d_ff: usize) -> Self {
        Self {
            attention: AttentionKind::Cross,
            feed_forward: FeedForwardKind::Dense { d_ff },
        }
    }

    /// Whether it attends to pictures.
    pub fn is_cross(&self) -> bool {
        self.attention == AttentionKind::Cross
    }
}

impl ModelConfig {
    /// The id that stands for a picture in a text; `None` without a tower.
    pub fn image_token(&self) -> Option<u32> {
        let id = u32::try_from(self.vocab_size).ok();
        id.filter(|_| self.vision.is_some())
    }

    /// Number of ids that a text may have: those of the vocabulary, and the image token.
    pub fn input_ids(&self) -> usize {
        self.vocab_size + usize::from(self.vision.is_some())
    }

    /// Rows of the embedding.
    pub fn embedding_rows(&self) -> usize {
        match self.vision {
            Some(_) => self.vocab_size + IMAGE_ROWS,
            None => self.vocab_size,
        }
    }

    /// The indices of the layers that attend to pictures, in order.
    pub fn cross_layers(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.layers.len()).filter(|&layer| self.layers[layer].is_cross())
    }

    /// Number of layers that attend to the text.
    pub fn text_layers(&self) -> usize {
        self.layers.len() - self.cross_layers().count()
    }

    /// The text model that is left without the tower and the layers that attend to pictures.
    #[must_use]
    pub fn text_only(&self) -> Self {
        let mut text = self.clone();
        text.layers.retain(|layer| !layer.is_cross());
        text.vision = None;
        text
    }

    /// This text model, untied, with a tower, and with layers that attend to pictures at these indices of the whole, in ascending
    /// order, whose feed-forwards have a width of `d_ff`.
    ///
    /// # Errors
    ///
    /// When the indices are not such, or the result violates a rule.
    pub fn with_vision(
        &self,
        vision: VisionConfig,
        cross_layers: &[usize],
        d_ff: usize,
    ) -> Result<Self, ConfigError> {
        let mut model = Self {
            vision: Some(vision),
            tied_embeddings: false,
            ..self.clone()
        };
        let whole = self.layers.len() + cross_layers.len();
        let ascend = cross_layers.is_sorted_by(|a, b| a < b);
        require(
            ascend && cross_layers.iter().all(|layer| (1..whole).contains(layer)),
            CROSS_LAYERS,
            format!("{cross_layers:?}"),
            format!(
                "must be layer indices from 1 to {} in ascending order, of the {whole} layers that these make with the others",
                whole - 1
            ),
            "[1] puts one behind the first layer; the first layer of all attends to the text",
        )?;
        for &layer in cross_layers {
            model.layers.insert(layer, LayerConfig::cross(d_ff));
        }
        model.validate()?;
        Ok(model)
    }

    pub(super) fn validate_vision(&self) -> Result<(), ConfigError> {
        let listed: Vec<usize> = self.cross_layers().collect();
        let Some(vision) = &self.vision else {
            return match listed.is_empty() {
                true => Ok(()),
                false => Err(ConfigError::missing("vision")),
            };
        };
        vision.validate()?;
        require(
            !listed.is_empty() && listed[0] > 0,
            CROSS_LAYERS,
            format!("{listed:?}"),
            "must name at least one layer, and not layer 0",
            "the first layer attends to the text",
        )?;
        require(
            !self.tied_embeddings,
            "tied_embeddings",
            self.tied_embeddings,
            "must be false in a model that sees pictures, whose embedding has more rows than its head",
            "untie the two: the head begins as a copy of the embedding's rows",
        )
    }
}

/// The key with the indices of the layers that attend to pictures.
pub(super) const CROSS_LAYERS: &str = "vision.cross_attention_layers";
