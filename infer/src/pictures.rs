//! What a model reads of picture files.

use std::path::Path;

use firebox_checkpoint::PREPROCESSOR_FILE;
use firebox_image::{Fitted, MAX_BYTES, Processor};
use firebox_model::config::{CHANNELS, ModelConfig};
use firebox_model::vision::Picture;
use firebox_serve::pictures::ReadPicture;

use crate::InferError;

/// Makes pictures into the tiles that a model reads: by the `preprocessor_config.json` of its folder, or where there is none
/// with values from −1 to 1.
#[derive(Debug, Clone)]
pub struct PictureReader {
    processor: Processor,
    /// The rows and columns of tiles that the model knows.
    aspect_ratios: Vec<[usize; 2]>,
    max_tiles: usize,
}

impl PictureReader {
    /// That of the model of a checkpoint's folder.
    ///
    /// # Errors
    ///
    /// When the model sees no pictures, or its `preprocessor_config.json` is not one that Firebox computes.
    pub fn new(folder: &Path, model: &ModelConfig) -> Result<Self, InferError> {
        let Some(vision) = &model.vision else {
            return Err(InferError::Blind {
                flag: "--image",
                folder: folder.to_owned(),
            });
        };
        let path = folder.join(PREPROCESSOR_FILE);
        Ok(Self {
            processor: match path.is_file() {
                true => Processor::load(&path)?,
                false => Processor::new(vision.tile_size, vision.max_tiles),
            },
            aspect_ratios: vision.aspect_ratios.clone(),
            max_tiles: vision.max_tiles,
        })
    }

    /// Reads a file.
    ///
    /// # Errors
    ///
    /// When it cannot be read as a picture, or the model does not know the arrangement of its tiles.
    pub fn open(&self, file: &Path) -> Result<Picture, InferError> {
        self.tiles(file, &firebox_image::Picture::open(file)?)
    }

    /// The same of a file's content; errors call it `name`.
    ///
    /// # Errors
    ///
    /// As there, except for reading.
    pub fn decode(&self, name: &str, content: &[u8]) -> Result<Picture, InferError> {
        let picture = firebox_image::Picture::decode(name, content)?;
        self.tiles(name.as_ref(), &picture)
    }

    /// A picture at the size that it has in its tiles, and the rows and columns of these.
    pub fn fit(&self, picture: &firebox_image::Picture) -> (firebox_image::Picture, [usize; 2]) {
        let Fitted {
            picture,
            aspect_ratio_id,
        } = self.processor.fit(picture);
        (picture, self.processor.aspect_ratios()[aspect_ratio_id - 1])
    }

    /// Pixels of a tile's side.
    pub fn tile(&self) -> usize {
        self.processor.tile()
    }

    fn tiles(&self, file: &Path, picture: &firebox_image::Picture) -> Result<Picture, InferError> {
        let tiles = self.processor.process(picture);
        let [rows, columns] = self.processor.aspect_ratios()[tiles.aspect_ratio_id - 1];
        let mut known = self.aspect_ratios.iter();
        let place = known.position(|&known| known == [rows, columns]);
        let place = place.ok_or_else(|| InferError::Arrangement {
            file: file.to_owned(),
            rows,
            columns,
        })?;
        Ok(Picture {
            arrangement: place + 1,
            used: (0..self.max_tiles).map(|tile| tile < tiles.used).collect(),
            pixels: tiles.pixel_values,
        })
    }
}

impl ReadPicture for PictureReader {
    fn most_bytes(&self) -> u64 {
        MAX_BYTES
    }

    fn picture_bytes(&self) -> u64 {
        let side = self.processor.tile();
        (self.max_tiles * CHANNELS * side * side * size_of::<f32>()) as u64
    }

    fn read(&self, name: &str, content: &[u8]) -> Result<Picture, String> {
        self.decode(name, content)
            .map_err(|error| error.to_string())
    }
}
