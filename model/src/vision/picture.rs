//! Pictures, as the processor makes them of images.

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

    /// Its patches, row by row within each tile: `[max_tiles · patches, 3 · patch_size · patch_size]`.
    pub(super) fn patches(&self, config: &VisionConfig) -> impl Iterator<Item = f32> {
        let (side, tile, patch) = (
            config.patches_per_side(),
            config.tile_size,
            config.patch_size,
        );
        let patches = (0..config.max_tiles).flat_map(move |number| {
            let patches = (0..side).flat_map(move |row| (0..side).map(move |column| (row, column)));
            patches.map(move |(row, column)| (number, row * patch, column * patch))
        });
        patches.flat_map(move |(number, top, left)| {
            let lines = (0..CHANNELS).flat_map(move |channel| {
                (top..top + patch).map(move |line| (number * CHANNELS + channel) * tile + line)
            });
            lines.flat_map(move |line| {
                let start = line * tile + left;
                self.pixels[start..start + patch].iter().copied()
            })
        })
    }
}
