//! From a picture to the values that an image encoder reads.

use super::arrangement::{Grid, choose, fit, grids};
use super::picture::Picture;
use super::resize::resize;

/// Makes pictures into tiles, as Hugging Face's `MllamaImageProcessor` does with Pillow, to the last bit.
#[derive(Debug, Clone, PartialEq)]
pub struct Processor {
    pub(crate) tile: usize,
    pub(crate) grids: Vec<Grid>,
    pub(crate) max_tiles: usize,
    pub(crate) rescale: f64,
    pub(crate) mean: [f64; 3],
    pub(crate) std: [f64; 3],
}

/// What an image encoder reads of one picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Tiles {
    /// The values, of the [shape](Processor::shape) of the processor; those of tiles that are not used are 0.
    pub pixel_values: Vec<f32>,
    /// The number of the picture's rows and columns of tiles, from 1: their place among
    /// [`aspect_ratios`](Processor::aspect_ratios). 0 is left for no picture.
    pub aspect_ratio_id: usize,
    /// Tiles that are used, which are the first.
    pub used: usize,
}

/// A picture at the size that it has in its tiles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fitted {
    /// Its pixels.
    pub picture: Picture,
    /// The number of its rows and columns of tiles, from 1.
    pub aspect_ratio_id: usize,
}

impl Processor {
    /// For at most `max_tiles` square tiles of `tile` pixels a side, with values from −1 to 1.
    ///
    /// # Panics
    ///
    /// When either is 0.
    pub fn new(tile: usize, max_tiles: usize) -> Self {
        assert!(tile > 0 && max_tiles > 0, "a picture has pixels");
        Self {
            tile,
            grids: grids(max_tiles),
            max_tiles,
            rescale: 1.0 / 255.0,
            mean: [0.5; 3],
            std: [0.5; 3],
        }
    }

    /// Pixels of a tile's side.
    pub fn tile(&self) -> usize {
        self.tile
    }

    /// The most tiles of a picture.
    pub fn max_tiles(&self) -> usize {
        self.max_tiles
    }

    /// Shape of a picture's values: tiles, channels, rows, columns.
    pub fn shape(&self) -> [usize; 4] {
        [self.max_tiles, 3, self.tile, self.tile]
    }

    /// The rows and columns of tiles that a picture may have, in the order of their numbers: what a model of this
    /// processor has as `supported_aspect_ratios`.
    pub fn aspect_ratios(&self) -> &[[usize; 2]] {
        &self.grids
    }

    /// A picture at the size that it has in its tiles.
    pub fn fit(&self, picture: &Picture) -> Fitted {
        let (width, height) = (picture.width(), picture.height());
        let place = choose(&self.grids, self.tile, height, width);
        let (height, width) = fit(self.grids[place], self.tile, height, width);
        Fitted {
            picture: resize(picture, width, height),
            aspect_ratio_id: place + 1,
        }
    }

    /// The values of a picture that this processor has fitted: filled up with black to the right and below, cut row by
    /// row, and normalised.
    ///
    /// # Panics
    ///
    /// When another processor has fitted it, and it has more tiles or larger ones.
    pub fn tiles(&self, fitted: &Fitted) -> Tiles {
        let [rows, columns] = self.grids[fitted.aspect_ratio_id - 1];
        let picture = &fitted.picture;
        let (width, height) = (picture.width(), picture.height());
        let tile = self.tile;
        assert!(
            width <= columns * tile && height <= rows * tile,
            "a picture that fits its tiles"
        );
        let levels = self.levels();
        let mut pixel_values = vec![0.0; self.shape().iter().product()];
        let tiles = pixel_values.chunks_exact_mut(3 * tile * tile);
        for (index, values) in tiles.take(rows * columns).enumerate() {
            let (top, left) = (index / columns * tile, index % columns * tile);
            for (line, values) in values.chunks_exact_mut(tile).enumerate() {
                let (channel, row) = (line / tile, top + line % tile);
                let levels = &levels[channel];
                values.fill(levels[0]);
                if row >= height || left >= width {
                    continue;
                }
                let pixels = picture.rgb()[row * width * 3..(row + 1) * width * 3].chunks_exact(3);
                for (value, pixel) in values.iter_mut().zip(pixels.skip(left)) {
                    *value = levels[usize::from(pixel[channel])];
                }
            }
        }
        Tiles {
            pixel_values,
            aspect_ratio_id: fitted.aspect_ratio_id,
            used: rows * columns,
        }
    }

    /// [`fit`](Self::fit), and then [`tiles`](Self::tiles).
    pub fn process(&self, picture: &Picture) -> Tiles {
        self.tiles(&self.fit(picture))
    }

    /// The value of each of the 256 levels in each channel. As in NumPy, a level is rescaled in 64 bits, and what
    /// comes of it rounded to 32 before it is normalised.
    fn levels(&self) -> [[f32; 256]; 3] {
        std::array::from_fn(|channel| {
            std::array::from_fn(|level| {
                let rescaled = (level as f64 * self.rescale) as f32;
                (rescaled - self.mean[channel] as f32) / self.std[channel] as f32
            })
        })
    }
}
