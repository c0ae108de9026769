//! Pictures and captions in JSON Lines files, a pair per line.

use std::path::{Path, PathBuf};

use firebox_text::documents::{JsonLines, TextError};

use super::{Entry, Picture};

/// The pairs of a file.
pub(super) struct Pairs {
    /// Where paths in the file begin.
    folder: PathBuf,
    lines: JsonLines,
    image: String,
    concept: Option<String>,
}

impl Pairs {
    /// Opens a file whose lines are objects with strings in these fields.
    pub fn open(
        path: &Path,
        image: &str,
        caption: &str,
        concept: Option<&str>,
    ) -> Result<Self, TextError> {
        Ok(Self {
            folder: path.parent().unwrap_or("".as_ref()).to_owned(),
            lines: JsonLines::open(path, caption)?,
            image: image.to_owned(),
            concept: concept.map(str::to_owned),
        })
    }
}

impl Iterator for Pairs {
    type Item = Result<Entry, TextError>;

    fn next(&mut self) -> Option<Self::Item> {
        let document = self.lines.next()?;
        Some(document.and_then(|document| {
            let path = self.folder.join(self.lines.field(&self.image)?);
            let concept = match &self.concept {
                Some(field) => self.lines.field(field)?,
                None => document.text.clone(),
            };
            let picture = Picture {
                path,
                concept,
                // Other lines are not known yet: a concept is held out as a whole or not at all.
                has_siblings: false,
                pixels: None,
            };
            Ok(Entry {
                document,
                picture: Some(picture),
            })
        }))
    }
}
