//! Pictures and captions in JSON Lines files, a pair per line.

use std::path::{Path, PathBuf};

use super::{Document, JsonLines, TextError};

/// Default name of the field of a JSON line that contains a caption.
pub const CAPTION_FIELD: &str = "caption";

/// A caption and the picture that it is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    /// The caption.
    pub caption: Document,
    /// The picture's file, whose path in the line begins at the folder of the lines.
    pub picture: PathBuf,
    /// What the pair belongs to, where a field of the line says it.
    pub group: Option<String>,
}

/// The pairs of a file.
#[derive(Debug)]
pub struct Pairs {
    /// Where paths in the file begin.
    folder: PathBuf,
    lines: JsonLines,
    image: String,
    group: Option<String>,
}

impl Pairs {
    /// Opens a file whose lines are objects with strings in these fields: the path of a picture, its caption, and what the
    /// pair belongs to.
    ///
    /// # Errors
    ///
    /// When it cannot be opened, or begins as a file of another kind.
    pub fn open(
        path: &Path,
        image: &str,
        caption: &str,
        group: Option<&str>,
    ) -> Result<Self, TextError> {
        Ok(Self {
            folder: path.parent().unwrap_or("".as_ref()).to_owned(),
            lines: JsonLines::open(path, caption)?,
            image: image.to_owned(),
            group: group.map(str::to_owned),
        })
    }
}

impl Iterator for Pairs {
    type Item = Result<Pair, TextError>;

    fn next(&mut self) -> Option<Self::Item> {
        let caption = self.lines.next()?;
        Some(caption.and_then(|caption| {
            Ok(Pair {
                caption,
                picture: self.folder.join(self.lines.field(&self.image)?),
                group: match &self.group {
                    Some(field) => Some(self.lines.field(field)?),
                    None => None,
                },
            })
        }))
    }
}
