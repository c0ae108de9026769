//! Emoji: some four thousand small pictures that come with the packages of this workspace, and their names.
//!
//! The pictures are Twemoji's, 72 × 72 pixels each, in the package `twemoji-assets`: files named by the code points of
//! an emoji. The names are those of the Unicode CLDR, in the package `emojis`. A picture without a name there is left
//! out: single parts of flags and people. The concept of a picture is the emoji without skin tones.

use std::path::{Path, PathBuf};

use firebox_text::documents::Document;

use super::super::error::DataError;
use super::{Entry, Picture, cargo};
use crate::config::EMOJI_PACKAGE;

/// The folder of the pictures in their package.
const PICTURES: &str = "assets/72x72";

/// The pictures' files, by name.
pub(super) fn files(source_name: &str) -> Result<Vec<PathBuf>, DataError> {
    let folder = cargo::package_folder(source_name, EMOJI_PACKAGE)?.join(PICTURES);
    let read = |error| DataError::io("read", &folder)(error);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&folder).map_err(read)? {
        files.push(entry.map_err(read)?.path());
    }
    files.retain(|path| path.extension().is_some_and(|extension| extension == "png"));
    files.sort();
    Ok(files)
}

/// A picture and its name, if it has one.
pub(super) fn entry(path: &Path) -> Option<Entry> {
    let code_points = path.file_stem()?.to_str()?.split('-');
    let text: Option<String> = code_points
        .map(|digits| char::from_u32(u32::from_str_radix(digits, 16).ok()?))
        .collect();
    let emoji = emojis::get(&text?)?;
    // The first of all tones is none.
    let plain = emoji.skin_tones().and_then(|mut tones| tones.next());
    Some(Entry {
        document: Document {
            name: path.display().to_string(),
            text: emoji.name().to_owned(),
        },
        picture: Some(Picture {
            path: path.to_owned(),
            concept: plain.unwrap_or(emoji).name().to_owned(),
            has_siblings: plain.is_some(),
            pixels: None,
        }),
        tokens: None,
    })
}
