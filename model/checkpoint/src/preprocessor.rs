//! `preprocessor_config.json`, which says a second time how pictures are cut into tiles.

use std::fs;
use std::path::Path;

use firebox_console::durable::FileError;
use serde_json::{Map, Value};

use super::CheckpointError;
use firebox_model::config::VisionConfig;

/// File name of the options of the image processor in a checkpoint folder.
pub const PREPROCESSOR_FILE: &str = "preprocessor_config.json";

const SIDE: &str = "the side of a tile";

/// Checks that the image processor of a folder, if it says what it does, makes the tiles that the tower reads.
/// `transformers` does not compare the two.
///
/// # Errors
///
/// When the file is damaged, or says another size or number of tiles.
pub(super) fn check(folder: &Path, vision: &VisionConfig) -> Result<(), CheckpointError> {
    let path = folder.join(PREPROCESSOR_FILE);
    if !path.is_file() {
        return Ok(());
    }
    let text = fs::read_to_string(&path).map_err(FileError::of("read", &path))?;
    let value: Map<String, Value> =
        serde_json::from_str(&text).map_err(|error| CheckpointError::Damaged {
            path: path.clone(),
            reason: error.to_string(),
        })?;
    let side = |side: &str| value.get("size").and_then(|size| size.get(side));
    for (key, found, expected, of) in [
        ("size.height", side("height"), vision.tile_size, SIDE),
        ("size.width", side("width"), vision.tile_size, SIDE),
        (
            "max_image_tiles",
            value.get("max_image_tiles"),
            vision.max_tiles,
            "the most tiles of a picture",
        ),
    ] {
        let Some(found) = found else {
            continue;
        };
        if found.as_u64() != u64::try_from(expected).ok() {
            return Err(CheckpointError::Config {
                path,
                key: key.to_owned(),
                value: found.to_string(),
                rule: format!("must be {expected}, {of} in config.json"),
            });
        }
    }
    Ok(())
}
