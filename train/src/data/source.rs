//! The documents of a source, read lazily and always in the same order.

mod cargo;
mod files;
mod url;

use firebox_text::documents::{self, Document, JsonLines, TextError};

pub use self::url::DownloadError;
use super::error::DataError;
use crate::config::{OnError, SourceConfig, SourceKind};

/// Documents as they are read; an error in the place of one that cannot be.
type Documents = Box<dyn Iterator<Item = Result<Document, TextError>>>;

/// Opens a source.
///
/// Documents without text are left out, those that are no text end the iterator or are left out as
/// `on_error` says, and none follows the one that reaches `max_bytes`.
///
/// # Errors
///
/// When nothing can be found, downloaded or verified. Reading goes on in the iterator.
pub(super) fn open(
    source: &SourceConfig,
    progress: bool,
) -> Result<impl Iterator<Item = Result<Document, DataError>> + use<>, DataError> {
    let name = &source.name;
    let documents: Documents =
        match &source.kind {
            SourceKind::Files { files } => {
                let paths = files::expand(name, files)?;
                Box::new(paths.into_iter().map(|path| documents::read(&path)))
            }
            SourceKind::Cargo { cargo } => Box::new(cargo::documents(name, cargo)?),
            SourceKind::Jsonl { jsonl, field } => {
                let field = field.clone();
                Box::new(files::expand(name, jsonl)?.into_iter().flat_map(
                    move |path| -> Documents {
                        match JsonLines::open(&path, &field) {
                            Ok(lines) => Box::new(lines),
                            Err(error) => Box::new(std::iter::once(Err(error))),
                        }
                    },
                ))
            }
            SourceKind::Url { url, sha256 } => {
                let path = url::fetch(name, url, sha256, progress)?;
                Box::new(std::iter::once_with(move || documents::read(&path)))
            }
        };
    Ok(Reader {
        documents,
        name: name.clone(),
        on_error: source.on_error,
        remaining: source.max_bytes.unwrap_or(u64::MAX),
    })
}

/// What `on_error` and `max_bytes` make of a source's documents.
struct Reader {
    documents: Documents,
    name: String,
    on_error: OnError,
    remaining: u64,
}

impl Iterator for Reader {
    type Item = Result<Document, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.remaining > 0 {
            match self.documents.next()? {
                Ok(document) if document.text.is_empty() => {}
                Ok(document) => {
                    self.remaining = self.remaining.saturating_sub(document.text.len() as u64);
                    return Some(Ok(document));
                }
                // A disk that cannot be read is no property of the document.
                Err(error)
                    if self.on_error == OnError::Skip && !matches!(error, TextError::Io { .. }) =>
                {
                    tracing::warn!("source {:?}: left out: {error}", self.name);
                }
                Err(error) => {
                    self.remaining = 0;
                    return Some(Err(DataError::Text {
                        source_name: self.name.clone(),
                        error,
                    }));
                }
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;
    use crate::config::Share;

    fn source(
        folder: &Path,
        pattern: &str,
        on_error: OnError,
        max_bytes: Option<u64>,
    ) -> SourceConfig {
        SourceConfig {
            name: "texts".to_owned(),
            kind: SourceKind::Files {
                files: vec![folder.join(pattern).display().to_string()],
            },
            share: Share::Epochs(1),
            max_bytes,
            on_error,
        }
    }

    fn texts(source: &SourceConfig) -> Vec<Result<String, String>> {
        let documents = open(source, false).unwrap();
        documents
            .map(|document| document.map(|d| d.text).map_err(|error| error.to_string()))
            .collect()
    }

    #[test]
    fn bad_documents_fail_or_are_left_out() {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in [
            ("a.txt", &b"one"[..]),
            ("b.txt", b"\xFF"),
            ("c.txt", b""),
            ("d.txt", b"two"),
        ] {
            fs::write(folder.path().join(name), content).unwrap();
        }
        let skip = texts(&source(folder.path(), "*.txt", OnError::Skip, None));
        assert_eq!(skip, [Ok("one".to_owned()), Ok("two".to_owned())]);
        let fail = texts(&source(folder.path(), "*.txt", OnError::Fail, None));
        assert_eq!(fail.len(), 2);
        assert!(
            fail[1]
                .as_ref()
                .unwrap_err()
                .contains("b.txt is not UTF-8: byte 0"),
            "{fail:?}"
        );
    }

    #[test]
    fn nothing_follows_the_document_that_reaches_the_limit() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["1", "2", "3"] {
            fs::write(folder.path().join(name), "four").unwrap();
        }
        for (limit, documents) in [(1, 1), (4, 1), (5, 2), (8, 2), (9, 3), (100, 3)] {
            assert_eq!(
                texts(&source(folder.path(), "*", OnError::Fail, Some(limit))).len(),
                documents,
                "{limit}"
            );
        }
    }
}
