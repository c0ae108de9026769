//! Pictures, as the processor makes them of images.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::config::{CHANNELS, VisionConfig};

/// A picture in tiles.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Picture {
    /// The number of its arrangement of tiles, from 1: the place in [`VisionConfig::aspect_ratios`], and one more.
    pub arrangement: usize,
    /// Which of its tiles are in use, `[max_tiles]`.
    pub used: Vec<bool>,
    /// `[max_tiles, 3, tile_size, tile_size]`, 0 in tiles that are not in use.
    pub pixels: Vec<f32>,
}

impl Picture {
    /// Checks its sizes against those of a tower.
    ///
    /// # Errors
    ///
    /// The rest of a sentence that begins with the picture.
    pub fn check(&self, config: &VisionConfig) -> Result<(), String> {
        let known = config.aspect_ratios.len();
        if !(1..=known).contains(&self.arrangement) {
            let number = self.arrangement;
            return Err(format!(
                "has arrangement {number}, and the model knows those from 1 to {known}"
            ));
        }
        let found = (self.used.len(), self.pixels.len());
        match found == (config.max_tiles, config.pixels()) {
            true => Ok(()),
            false => Err(format!(
                "has {} tiles of {} values, and the model reads {} of {}",
                found.0,
                found.1,
                config.max_tiles,
                config.pixels()
            )),
        }
    }
}

/// The patches of pictures, row by row within each tile: `[pictures · max_tiles · patches, 3 · patch_size · patch_size]`.
pub(super) fn patches(pictures: &[&Picture], config: &VisionConfig) -> Vec<f32> {
    let (side, tile, patch) = (
        config.patches_per_side(),
        config.tile_size,
        config.patch_size,
    );
    let of_picture = config.max_tiles * side * side;
    let of_patch = CHANNELS * patch * patch;
    let mut values = vec![0.0; pictures.len() * of_picture * of_patch];
    let patches = values.par_chunks_mut(of_patch);
    // Some 16 KiB at once, at least.
    let least = (1 << 12) / of_patch + 1;
    let patches = patches.enumerate().with_min_len(least);
    patches.for_each(|(index, values)| {
        let (picture, place) = (pictures[index / of_picture], index % of_picture);
        let (number, row, column) = (place / (side * side), place / side % side, place % side);
        for (line, values) in values.chunks_exact_mut(patch).enumerate() {
            let (channel, line) = (line / patch, row * patch + line % patch);
            let line = (number * CHANNELS + channel) * tile + line;
            let start = line * tile + column * patch;
            values.copy_from_slice(&picture.pixels[start..start + patch]);
        }
    });
    values
}
