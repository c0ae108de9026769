//! The documents of a source, read lazily and always in the same order.

mod cargo;
mod files;
mod url;

use std::iter;
use std::path::{Path, PathBuf};

use firebox_text::documents::{self, Document, JsonLines, TextError, is_json_lines};

use self::cargo::Distinct;
pub use self::url::DownloadError;
use super::error::DataError;
use super::record::Footprint;
use crate::config::{OnError, SourceConfig, SourceKind};

/// Documents as they are read; an error in the place of one that cannot be.
type Documents = Box<dyn Iterator<Item = Result<Document, TextError>>>;

/// The files of a source, in the order in which they are read. None is opened.
///
/// # Errors
///
/// When nothing can be found.
pub(super) fn files(source: &SourceConfig) -> Result<Box<dyn Iterator<Item = PathBuf>>, DataError> {
    let name = &source.name;
    Ok(match &source.kind {
        SourceKind::Files { files } => Box::new(files::expand(name, files)?.into_iter()),
        SourceKind::Cargo { cargo } => Box::new(cargo::files(name, cargo)?),
        SourceKind::Jsonl { jsonl, .. } => Box::new(files::expand(name, jsonl)?.into_iter()),
        SourceKind::Url { url, sha256 } => Box::new(iter::once(url::path(url, sha256))),
    })
}

/// Opens a source.
///
/// Documents without text are left out, those that are not text end the iterator or are left out and counted as
/// `on_error` says, and none follows the one that reaches `max_bytes`.
///
/// # Errors
///
/// When nothing can be found, downloaded or verified. Further reading happens in the iterator.
pub(super) fn open(source: &SourceConfig, progress: bool) -> Result<Reader, DataError> {
    let name = &source.name;
    let format = match &source.kind {
        SourceKind::Files { .. } => Format::Text(None),
        SourceKind::Cargo { .. } => Format::Code(Distinct::default()),
        SourceKind::Jsonl { field, .. } => Format::Lines(field.clone()),
        SourceKind::Url { url, sha256 } => {
            url::fetch(name, url, sha256, progress)?;
            Format::Text(Some(PathBuf::from(url)))
        }
    };
    Ok(Reader {
        files: files(source)?,
        format,
        documents: Box::new(iter::empty()),
        name: name.clone(),
        on_error: source.on_error,
        remaining: source.max_bytes.unwrap_or(u64::MAX),
        footprint: Footprint::default(),
        left_out: LeftOut::default(),
        json_lines: 0,
        complete: false,
    })
}

/// How a file contains documents.
enum Format {
    /// The file is one document; its name, if that is not its path.
    Text(Option<PathBuf>),
    /// The file is one document, unless it is a copy or was generated.
    Code(Distinct),
    /// Each line is a JSON object with a document in this field.
    Lines(String),
}

impl Format {
    /// Whether a file of one document per line is read as one document.
    fn ignores_lines(&self, path: &Path) -> bool {
        match self {
            // What cannot be looked at cannot be read either.
            Self::Text(name) => is_json_lines(name.as_deref().unwrap_or(path)).unwrap_or(false),
            Self::Code(_) | Self::Lines(_) => false,
        }
    }

    fn documents(&mut self, path: &Path) -> Documents {
        let document = match self {
            Self::Text(_) => documents::read(path),
            Self::Code(distinct) => match documents::read(path) {
                Ok(document) if !distinct.is_new(&document.text) => return Box::new(iter::empty()),
                document => document,
            },
            Self::Lines(field) => match JsonLines::open(path, field) {
                Ok(lines) => return Box::new(lines),
                Err(error) => Err(error),
            },
        };
        Box::new(iter::once(document))
    }
}

/// Reads the documents of a source, and keeps the footprint of the files that it has read.
pub(super) struct Reader {
    files: Box<dyn Iterator<Item = PathBuf>>,
    format: Format,
    /// The remaining documents of the current file.
    documents: Documents,
    name: String,
    on_error: OnError,
    /// Bytes left until `max_bytes`.
    remaining: u64,
    footprint: Footprint,
    left_out: LeftOut,
    json_lines: u64,
    complete: bool,
}

/// Documents that `on_error = "skip"` leaves out. A file of another kind and a link that leads nowhere count as one.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    pub count: u64,
    /// What is wrong with the first of them.
    pub first: Option<TextError>,
}

impl Reader {
    /// The files that have been read, each as it was when it was opened.
    pub fn footprint(&self) -> &Footprint {
        &self.footprint
    }

    /// The documents that were left out up to now.
    pub fn left_out(&self) -> &LeftOut {
        &self.left_out
    }

    /// The files of JSON lines up to now that were read as one plain text each.
    pub fn json_lines(&self) -> u64 {
        self.json_lines
    }

    /// Whether all files have been read.
    pub fn is_complete(&self) -> bool {
        self.complete
    }
}

impl Iterator for Reader {
    type Item = Result<Document, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.remaining > 0 {
            match self.documents.next() {
                None => {
                    let Some(path) = self.files.next() else {
                        self.complete = true;
                        return None;
                    };
                    self.footprint.add(&path);
                    self.json_lines += u64::from(self.format.ignores_lines(&path));
                    self.documents = self.format.documents(&path);
                }
                Some(Ok(document)) if document.text.is_empty() => {}
                Some(Ok(document)) => {
                    self.remaining = self.remaining.saturating_sub(document.text.len() as u64);
                    return Some(Ok(document));
                }
                // A disk that cannot be read is not the fault of the document.
                Some(Err(error))
                    if self.on_error == OnError::Skip && !matches!(error, TextError::Io { .. }) =>
                {
                    tracing::debug!("source {:?}: left out: {error}", self.name);
                    self.left_out.count += 1;
                    self.left_out.first.get_or_insert(error);
                }
                Some(Err(error)) => {
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
                .contains("b.txt: invalid UTF-8 at byte 0"),
            "{fail:?}"
        );
    }

    #[test]
    fn what_is_left_out_is_counted() {
        let folder = tempfile::tempdir().unwrap();
        let write =
            |name: &str, content: &[u8]| fs::write(folder.path().join(name), content).unwrap();
        write(
            "a.jsonl",
            b"{\"text\": \"one\"}\nnot\n{}\n{\"text\": \"\xFF\"}\n",
        );
        write("b.jsonl", b"\x1F\x8B\n\n\n");
        write("c.jsonl", b"[\n{\"text\": \"two\"}\n]\n");
        let mut expected = 5;
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink("/nowhere", folder.path().join("d.jsonl")).unwrap();
            expected += 1;
        }
        let mut lines = source(folder.path(), "", OnError::Skip, None);
        lines.kind = SourceKind::Jsonl {
            jsonl: vec![folder.path().join("*.jsonl").display().to_string()],
            field: "text".to_owned(),
        };
        let mut reader = open(&lines, false).unwrap();
        assert_eq!(reader.by_ref().map(Result::unwrap).count(), 1);
        assert_eq!(reader.left_out().count, expected);
        let first = reader.left_out().first.as_ref().unwrap().to_string();
        assert!(
            first.contains("a.jsonl:2: invalid JSON at column 1"),
            "{first}"
        );

        lines.on_error = OnError::Fail;
        assert!(open(&lines, false).unwrap().nth(1).unwrap().is_err());
    }

    #[test]
    fn lines_that_are_read_as_one_text_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in [
            ("a.jsonl", "{\"text\": \"one\"}\n"),
            ("b.json", "{\"text\": \"one\"}\n{\"text\": \"two\"}\n"),
            ("c.json", "{\n  \"text\": \"one\"\n}\n"),
            ("d.txt", "{\"text\": \"one\"}\n"),
            ("e.ndjson", ""),
        ] {
            fs::write(folder.path().join(name), content).unwrap();
        }
        let count = |source: &SourceConfig| {
            let mut reader = open(source, false).unwrap();
            assert!(reader.by_ref().all(|document| document.is_ok()));
            reader.json_lines()
        };
        let mut all = source(folder.path(), "*", OnError::Fail, None);
        assert_eq!(count(&all), 3);
        all.kind = SourceKind::Jsonl {
            jsonl: vec![folder.path().join("a.*").display().to_string()],
            field: "text".to_owned(),
        };
        assert_eq!(count(&all), 0);
        let url = folder.path().join("a.jsonl");
        let sha256 = super::super::hash::hash(&fs::read(&url).unwrap());
        all.kind = SourceKind::Url {
            url: url.display().to_string(),
            sha256: super::super::hash::hexadecimal(&sha256),
        };
        assert_eq!(count(&all), 1);
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
