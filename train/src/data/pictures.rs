//! Prepared pictures on disk: their pixels at the size that they have in the model's tiles, and an index of them.
//!
//! A set of pictures belongs to a set of tokens: a picture to the document that is its caption. The pixels are one file,
//! three bytes a pixel; the index has 24 bytes a picture: where its pixels end, its width and height, the number of its
//! rows and columns of tiles, and why it is held out. Reading one takes no decoder, so that a training step does not wait
//! for pictures.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use firebox_image::{Fitted, Picture};
use serde::{Deserialize, Serialize};

use super::error::DataError;
use super::pool::FilePool;
use super::shards::{FileManifest, HEADER_BYTES, HashedFile, header};
use super::split::HeldOutPicture;

const ENTRY_BYTES: usize = 24;
const PIXELS_MAGIC: &[u8; 8] = b"FBXPIXEL";
const INDEX_MAGIC: &[u8; 8] = b"FBXPICTS";

/// What is known about a set of pictures without reading it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PictureManifest {
    /// What its files are called after.
    pub name: String,
    /// Pictures in the set.
    pub pictures: u64,
    /// Of them, those that are held out although others of their concept are trained on.
    pub combinations: u64,
    /// Bytes of their pixels.
    pub bytes: u64,
    pub pixels: FileManifest,
    pub index: FileManifest,
}

fn pixels_path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.pixels"))
}

fn index_path(folder: &Path, name: &str) -> PathBuf {
    folder.join(format!("{name}.pictures"))
}

fn pixels_header() -> [u8; HEADER_BYTES] {
    header(PIXELS_MAGIC, 3)
}

fn index_header() -> [u8; HEADER_BYTES] {
    header(INDEX_MAGIC, ENTRY_BYTES as u32)
}

impl PictureManifest {
    /// Checks that the set's files are as they were written, as
    /// [`SetManifest::check`](super::shards::SetManifest::check) does.
    ///
    /// # Errors
    ///
    /// When a file is missing or damaged.
    pub fn check(&mut self, folder: &Path) -> Result<bool, DataError> {
        let pixels = pixels_path(folder, &self.name);
        let index = index_path(folder, &self.name);
        let renewed = self.pixels.check(&pixels, self.bytes)?;
        Ok(self
            .index
            .check(&index, self.pictures * ENTRY_BYTES as u64)?
            || renewed)
    }
}

/// Writes a set of pictures, one by one.
pub(super) struct PictureWriter {
    name: String,
    pictures: u64,
    combinations: u64,
    bytes: u64,
    pixels: HashedFile,
    index: HashedFile,
}

impl PictureWriter {
    /// Files are called after `name`.
    pub fn create(folder: &Path, name: &str) -> Result<Self, DataError> {
        let mut pixels = HashedFile::create(pixels_path(folder, name))?;
        let mut index = HashedFile::create(index_path(folder, name))?;
        pixels.write(&pixels_header())?;
        index.write(&index_header())?;
        Ok(Self {
            name: name.to_owned(),
            pictures: 0,
            combinations: 0,
            bytes: 0,
            pixels,
            index,
        })
    }

    /// Adds a picture.
    pub fn add(
        &mut self,
        fitted: &Fitted,
        held_out: Option<HeldOutPicture>,
    ) -> Result<(), DataError> {
        let picture = &fitted.picture;
        self.pixels.write(picture.rgb())?;
        self.pictures += 1;
        self.combinations += u64::from(held_out == Some(HeldOutPicture::Combination));
        self.bytes += picture.rgb().len() as u64;
        self.index.write(&self.bytes.to_le_bytes())?;
        let held_out = held_out.map_or(0, HeldOutPicture::number);
        for number in [
            picture.width(),
            picture.height(),
            fitted.aspect_ratio_id,
            held_out,
        ] {
            self.index.write(&(number as u32).to_le_bytes())?;
        }
        Ok(())
    }

    /// Completes the files.
    pub fn finish(self) -> Result<PictureManifest, DataError> {
        Ok(PictureManifest {
            name: self.name,
            pictures: self.pictures,
            combinations: self.combinations,
            bytes: self.bytes,
            pixels: self.pixels.finish()?,
            index: self.index.finish()?,
        })
    }
}

/// A set of pictures with random access.
#[derive(Debug)]
pub(super) struct PictureSet {
    folder: PathBuf,
    name: String,
    pictures: u64,
    combinations: u64,
    files: Arc<FilePool>,
}

impl PictureSet {
    /// The set in a folder, read through a pool of open files.
    pub fn new(folder: &Path, manifest: &PictureManifest, files: &Arc<FilePool>) -> Self {
        Self {
            folder: folder.to_owned(),
            name: manifest.name.clone(),
            pictures: manifest.pictures,
            combinations: manifest.combinations,
            files: files.clone(),
        }
    }

    /// Number of pictures.
    pub fn pictures(&self) -> u64 {
        self.pictures
    }

    /// Of them, those that are held out although others of their concept are trained on.
    pub fn combinations(&self) -> u64 {
        self.combinations
    }

    /// A picture.
    ///
    /// # Errors
    ///
    /// When the files cannot be read.
    pub fn read(&self, number: u64) -> Result<Fitted, DataError> {
        let entry = self.entry(number)?;
        let Entry {
            end,
            width,
            height,
            aspect_ratio_id,
            ..
        } = entry;
        let mut rgb = vec![0; width * height * 3];
        let start = end.checked_sub(rgb.len() as u64);
        let start = start.filter(|_| !rgb.is_empty() && aspect_ratio_id > 0);
        let start = start.ok_or_else(|| DataError::Damaged {
            path: index_path(&self.folder, &self.name),
            reason: format!("its picture {number} has no pixels"),
        })?;
        let pixels = pixels_path(&self.folder, &self.name);
        let offset = HEADER_BYTES as u64 + start;
        self.files
            .read(&pixels, &pixels_header(), offset, &mut rgb)?;
        Ok(Fitted {
            picture: Picture::new(width, height, rgb),
            aspect_ratio_id,
        })
    }

    /// Why a picture is held out, if it is.
    ///
    /// # Errors
    ///
    /// When the index cannot be read.
    pub fn held_out(&self, number: u64) -> Result<Option<HeldOutPicture>, DataError> {
        Ok(HeldOutPicture::of_number(self.entry(number)?.held_out))
    }

    fn entry(&self, number: u64) -> Result<Entry, DataError> {
        let path = index_path(&self.folder, &self.name);
        let mut entry = [0; ENTRY_BYTES];
        let offset = HEADER_BYTES as u64 + number * ENTRY_BYTES as u64;
        self.files
            .read(&path, &index_header(), offset, &mut entry)?;
        let [width, height, aspect_ratio_id, held_out] = std::array::from_fn(|place| {
            let bytes = std::array::from_fn(|byte| entry[8 + place * 4 + byte]);
            u32::from_le_bytes(bytes) as usize
        });
        Ok(Entry {
            end: u64::from_le_bytes(std::array::from_fn(|byte| entry[byte])),
            width,
            height,
            aspect_ratio_id,
            held_out,
        })
    }
}

/// What the index says of a picture.
struct Entry {
    /// Where its pixels end, in bytes.
    end: u64,
    width: usize,
    height: usize,
    aspect_ratio_id: usize,
    held_out: usize,
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn fitted(width: usize, height: usize, level: u8) -> Fitted {
        Fitted {
            picture: Picture::new(width, height, vec![level; width * height * 3]),
            aspect_ratio_id: level as usize,
        }
    }

    #[test]
    fn pictures_are_read_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let pictures = [
            (fitted(2, 3, 1), None),
            (fitted(5, 1, 2), Some(HeldOutPicture::Concept)),
            (fitted(1, 1, 3), Some(HeldOutPicture::Combination)),
        ];
        let mut writer = PictureWriter::create(folder.path(), "set").unwrap();
        for (picture, held_out) in &pictures {
            writer.add(picture, *held_out).unwrap();
        }
        let mut manifest = writer.finish().unwrap();
        assert_eq!((manifest.pictures, manifest.combinations), (3, 1));
        assert_eq!(manifest.bytes, (6 + 5 + 1) * 3);
        assert!(!manifest.check(folder.path()).unwrap());
        let set = PictureSet::new(folder.path(), &manifest, &Arc::default());
        for number in [2, 0, 1] {
            let (picture, held_out) = &pictures[number];
            assert_eq!(set.read(number as u64).unwrap(), *picture);
            assert_eq!(set.held_out(number as u64).unwrap(), *held_out);
        }
        assert!(matches!(set.read(3), Err(DataError::Damaged { .. })));

        let path = folder.path().join("set.pixels");
        let mut bytes = fs::read(&path).unwrap();
        bytes.pop();
        fs::write(&path, &bytes).unwrap();
        assert!(matches!(
            manifest.check(folder.path()),
            Err(DataError::Damaged { .. })
        ));
    }
}
