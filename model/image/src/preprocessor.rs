//! `preprocessor_config.json`: how a checkpoint of Hugging Face wants its pictures.

use std::fs;
use std::path::{Path, PathBuf};

use firebox_console::advice::{Advice, Advise};
use firebox_console::durable::FileError;
use serde::Deserialize;
use serde_json::{Value, json};

use super::arrangement::grids;
use super::processor::Processor;

/// Name of the file in a checkpoint's folder.
pub const PREPROCESSOR_FILE: &str = "preprocessor_config.json";

/// What the names of the processor's class begin with; some versions append to it.
const CLASS: &str = "MllamaImageProcessor";

/// Pillow's number of the bilinear filter.
const BILINEAR: u64 = 2;

/// The largest tile. Larger ones are no pictures' sides, but a mistake.
const MAX_TILE: usize = 4096;

/// The most tiles of a picture.
const MAX_TILES: usize = 64;

/// Why a processor's file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ProcessorError {
    /// The file cannot be read.
    #[error(transparent)]
    Io(#[from] FileError),
    /// The text is not such a file.
    #[error("{} is not a {PREPROCESSOR_FILE}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The parser's message.
        message: String,
    },
    /// A key has a value with which pictures cannot be processed.
    #[error("{}: {key} is {found}, and must be {allowed}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The key.
        key: &'static str,
        /// Its value.
        found: String,
        /// What is allowed.
        allowed: String,
    },
}

impl Advise for ProcessorError {
    fn advice(&self) -> Advice {
        match self {
            Self::Io(_) => Advice::FAILURE,
            Self::Parse { .. } => {
                Advice::FAILURE.hint("copy the file again from where the checkpoint comes from")
            }
            Self::Key { .. } => Advice::FAILURE.hint(format!(
                "pictures are processed as {CLASS} of transformers does; a checkpoint that expects others cannot be used"
            )),
        }
    }
}

/// The file. Where a key is missing, transformers' default is meant; what it does not know does nothing.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Raw {
    image_processor_type: Option<String>,
    do_convert_rgb: Option<bool>,
    do_resize: Option<bool>,
    do_rescale: Option<bool>,
    do_normalize: Option<bool>,
    do_pad: Option<bool>,
    do_center_crop: Option<bool>,
    size: Option<Size>,
    max_image_tiles: Option<usize>,
    resample: Option<u64>,
    rescale_factor: Option<f64>,
    image_mean: Option<[f64; 3]>,
    image_std: Option<[f64; 3]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
struct Size {
    height: usize,
    width: usize,
}

impl Processor {
    /// Reads a `preprocessor_config.json`.
    ///
    /// # Errors
    ///
    /// When it cannot be read, is none, or asks for something else than Mllama's processing.
    pub fn load(path: &Path) -> Result<Self, ProcessorError> {
        let text = fs::read_to_string(path).map_err(FileError::of("read", path))?;
        let raw: Raw = serde_json::from_str(&text).map_err(|error| ProcessorError::Parse {
            path: path.to_owned(),
            message: error.to_string(),
        })?;
        raw.resolve()
            .map_err(|(key, found, allowed)| ProcessorError::Key {
                path: path.to_owned(),
                key,
                found,
                allowed,
            })
    }

    /// The content of a `preprocessor_config.json` that says the same.
    pub fn to_json(&self) -> Value {
        json!({
            "do_convert_rgb": true,
            "do_normalize": true,
            "do_pad": true,
            "do_rescale": true,
            "do_resize": true,
            "image_mean": self.mean,
            "image_processor_type": CLASS,
            "image_std": self.std,
            "max_image_tiles": self.max_tiles,
            "resample": BILINEAR,
            "rescale_factor": self.rescale,
            "size": { "height": self.tile, "width": self.tile },
        })
    }
}

/// Key, value, what is allowed.
type Fault = (&'static str, String, String);

impl Raw {
    fn resolve(self) -> Result<Processor, Fault> {
        if let Some(class) = self
            .image_processor_type
            .filter(|class| !class.starts_with(CLASS))
        {
            return Err((
                "image_processor_type",
                format!("{class:?}"),
                format!("{CLASS:?}"),
            ));
        }
        let steps = [
            ("do_convert_rgb", self.do_convert_rgb, true),
            ("do_resize", self.do_resize, true),
            ("do_rescale", self.do_rescale, true),
            ("do_normalize", self.do_normalize, true),
            ("do_pad", self.do_pad, true),
            ("do_center_crop", self.do_center_crop, false),
        ];
        for (key, found, expected) in steps {
            if let Some(found) = found.filter(|&found| found != expected) {
                return Err((key, found.to_string(), expected.to_string()));
            }
        }
        let size = self.size.unwrap_or(Size {
            height: 224,
            width: 224,
        });
        if size.height != size.width || !(1..=MAX_TILE).contains(&size.height) {
            let found = format!("{} × {}", size.height, size.width);
            return Err((
                "size",
                found,
                format!("square, with sides from 1 to {MAX_TILE}"),
            ));
        }
        let max_tiles = self.max_image_tiles.unwrap_or(4);
        if !(1..=MAX_TILES).contains(&max_tiles) {
            return Err((
                "max_image_tiles",
                max_tiles.to_string(),
                format!("from 1 to {MAX_TILES}"),
            ));
        }
        if let Some(found) = self.resample.filter(|&found| found != BILINEAR) {
            let allowed = format!("{BILINEAR}, the bilinear filter");
            return Err(("resample", found.to_string(), allowed));
        }
        let rescale = self.rescale_factor.unwrap_or(1.0 / 255.0);
        if !(rescale.is_finite() && rescale > 0.0) {
            return Err(("rescale_factor", rescale.to_string(), "above 0".to_owned()));
        }
        let three = |key, given: Option<[f64; 3]>, is_allowed: fn(f32) -> bool, allowed: &str| {
            let given = given.unwrap_or([0.5; 3]);
            let mut rounded = given.iter().map(|&value| value as f32);
            match rounded.all(|value| value.is_finite() && is_allowed(value)) {
                true => Ok(given),
                false => Err((key, format!("{given:?}"), format!("three numbers{allowed}"))),
            }
        };
        Ok(Processor {
            tile: size.height,
            grids: grids(max_tiles),
            max_tiles,
            rescale,
            mean: three("image_mean", self.image_mean, |_| true, "")?,
            std: three("image_std", self.image_std, |std| std > 0.0, " above 0")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str) -> Result<Processor, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(PREPROCESSOR_FILE);
        fs::write(&path, text).unwrap();
        let place = format!("{}", folder.path().display());
        Processor::load(&path).map_err(|error| error.to_string().replace(&place, "FOLDER"))
    }

    #[test]
    fn what_is_written_is_read() {
        let mut processor = Processor::new(28, 4);
        processor.mean = [0.48145466, 0.4578275, 0.40821073];
        processor.std = [0.26862954, 0.26130258, 0.27577711];
        let text = processor.to_json().to_string();
        assert!(text.contains("0.26862954,"), "{text}");
        assert_eq!(load(&text), Ok(processor));
        let defaults = Processor::new(224, 4);
        assert_eq!(
            load(r#"{"processor_class": "MllamaProcessor"}"#),
            Ok(defaults)
        );
    }

    #[test]
    fn other_processing_is_refused() {
        for (text, expected) in [
            (
                "",
                "FOLDER/preprocessor_config.json is not a preprocessor_config.json: EOF while parsing",
            ),
            (
                r#"{"size": 28}"#,
                "FOLDER/preprocessor_config.json is not a preprocessor_config.json: invalid type",
            ),
            (
                r#"{"image_processor_type": "CLIPImageProcessor"}"#,
                "FOLDER/preprocessor_config.json: image_processor_type is \"CLIPImageProcessor\", and must be \"MllamaImageProcessor\"",
            ),
            (
                r#"{"do_pad": false}"#,
                "FOLDER/preprocessor_config.json: do_pad is false, and must be true",
            ),
            (
                r#"{"do_center_crop": true}"#,
                "FOLDER/preprocessor_config.json: do_center_crop is true, and must be false",
            ),
            (
                r#"{"size": {"height": 28, "width": 30}}"#,
                "FOLDER/preprocessor_config.json: size is 28 × 30, and must be square, with sides from 1 to 4096",
            ),
            (
                r#"{"max_image_tiles": 0}"#,
                "FOLDER/preprocessor_config.json: max_image_tiles is 0, and must be from 1 to 64",
            ),
            (
                r#"{"resample": 3}"#,
                "FOLDER/preprocessor_config.json: resample is 3, and must be 2, the bilinear filter",
            ),
            (
                r#"{"rescale_factor": 0}"#,
                "FOLDER/preprocessor_config.json: rescale_factor is 0, and must be above 0",
            ),
            (
                r#"{"image_std": [0.5, 0.0, 1e300]}"#,
                "FOLDER/preprocessor_config.json: image_std is [0.5, 0.0, 1e300], and must be three numbers above 0",
            ),
        ] {
            let error = load(text).unwrap_err();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
