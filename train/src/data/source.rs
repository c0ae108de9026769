//! The documents of a source, read lazily and always in the same order.

mod cargo;
mod emoji;
mod files;
mod url;

use std::collections::VecDeque;
use std::iter;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use firebox_image::{Fitted, PictureError, Processor};

use firebox_text::documents::{
    self, Document, JsonLines, Pair, Pairs, Rows, TextError, TokenDocument, TokenFile,
    is_json_lines,
};
use firebox_text::{TokenTexts, Tokenizer};
use sha2::{Digest, Sha256};

use self::cargo::Distinct;
pub use self::url::DownloadError;
use super::error::DataError;
use super::hash::hash;
use super::record::Footprint;
use crate::config::{OnError, SourceConfig, SourceKind, TileLimits};

/// A document of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub document: Document,
    /// The picture that the document is the caption of.
    pub picture: Option<Picture>,
    /// The tokens of its text, where the source has them, without those that begin and end documents.
    pub tokens: Option<Vec<u32>>,
}

/// A picture that has a caption.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Picture {
    /// Its file.
    pub path: PathBuf,
    /// What it shows. Pictures of one concept may be much alike.
    pub concept: String,
    /// Whether there are other pictures of the concept.
    pub has_siblings: bool,
    /// Its pixels, where the model sees pictures.
    pub pixels: Option<Fitted>,
}

/// Why a document or its picture cannot be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    /// The document.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The picture that it is the caption of.
    #[error(transparent)]
    Picture(#[from] PictureError),
}

/// Pictures that are decoded at once, on all cores.
const PICTURES_AT_ONCE: usize = 64;

impl Entry {
    /// What is to be prepared of the document besides its text: nothing, unless it is a caption or tokens.
    pub fn besides(&self) -> Vec<u8> {
        if let Some(tokens) = &self.tokens {
            let mut hasher = Sha256::new();
            for id in tokens {
                hasher.update(id.to_le_bytes());
            }
            return hasher.finalize().to_vec();
        }
        let Some(picture) = &self.picture else {
            return Vec::new();
        };
        let concept = hash(picture.concept.as_bytes());
        let mut content = [&concept[..], &[u8::from(picture.has_siblings)]].concat();
        if let Some(pixels) = &picture.pixels {
            let sides = [pixels.aspect_ratio_id, pixels.picture.width()];
            content.extend(sides.iter().flat_map(|side| (*side as u64).to_le_bytes()));
            content.extend(hash(pixels.picture.rgb()));
        }
        content
    }
}

impl Entry {
    /// The same with the pixels of its picture, if it has one.
    fn with_pixels(mut self, processor: &Processor) -> Result<Self, PictureError> {
        if let Some(picture) = &mut self.picture {
            let opened = firebox_image::Picture::open(&picture.path)?;
            picture.pixels = Some(processor.fit(&opened));
        }
        Ok(self)
    }
}

impl From<Document> for Entry {
    fn from(document: Document) -> Self {
        Self {
            document,
            picture: None,
            tokens: None,
        }
    }
}

impl From<TokenDocument> for Entry {
    fn from(document: TokenDocument) -> Self {
        Self {
            tokens: Some(document.ids),
            ..document.document.into()
        }
    }
}

impl From<Pair> for Entry {
    fn from(pair: Pair) -> Self {
        let picture = Picture {
            path: pair.picture,
            concept: pair.group.unwrap_or_else(|| pair.caption.text.clone()),
            // Other lines are not known yet: a concept is held out as a whole or not at all.
            has_siblings: false,
            pixels: None,
        };
        Self {
            picture: Some(picture),
            ..pair.caption.into()
        }
    }
}

/// Documents as they are read; an error in the place of one that cannot be.
type Documents = Box<dyn Iterator<Item = Result<Entry, TextError>>>;

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
        SourceKind::Emoji { .. } => Box::new(emoji::files(name)?.into_iter()),
        SourceKind::Jsonl { jsonl, .. } | SourceKind::Pairs { jsonl, .. } => {
            Box::new(files::expand(name, jsonl)?.into_iter())
        }
        SourceKind::Parquet { parquet, .. } => Box::new(files::expand(name, parquet)?.into_iter()),
        SourceKind::Tokens { tokens } => Box::new(files::expand(name, tokens)?.into_iter()),
        SourceKind::Url { url, sha256 } => Box::new(iter::once(url::path(url, sha256))),
    })
}

/// Opens a source. `tokenizer` is that of a file, if the run has one: a source of tokens needs it.
///
/// Documents without text are left out, those that are not text end the iterator or are left out and counted as
/// `on_error` says, and none follows the one that reaches `max_bytes`.
///
/// # Errors
///
/// When nothing can be found, downloaded or verified. Further reading happens in the iterator.
pub(super) fn open(
    source: &SourceConfig,
    tokenizer: Option<&Tokenizer>,
    progress: bool,
) -> Result<Reader, DataError> {
    let name = &source.name;
    let format = match &source.kind {
        SourceKind::Files { .. } => Format::Text(None),
        SourceKind::Cargo { .. } => Format::Code(Distinct::default()),
        SourceKind::Emoji { .. } => Format::Emoji,
        SourceKind::Pairs {
            image,
            field,
            concept,
            ..
        } => Format::Pairs {
            image: image.clone(),
            caption: field.clone(),
            concept: concept.clone(),
        },
        SourceKind::Jsonl { field, .. } => Format::Lines(field.clone()),
        SourceKind::Parquet { field, .. } => Format::Rows(field.clone()),
        SourceKind::Tokens { .. } => {
            let tokenizer = tokenizer.ok_or_else(|| DataError::NoTokenizer {
                source_name: name.clone(),
            })?;
            Format::Tokens(Arc::new(TokenTexts::new(tokenizer.clone())))
        }
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
        processor: source.tiles.map(TileLimits::processor),
        pictured: VecDeque::new(),
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
    /// Each row has a document in this column.
    Rows(String),
    /// The file is tokens of these texts.
    Tokens(Arc<TokenTexts>),
    /// The file is a picture, and its name says which.
    Emoji,
    /// Each line is a JSON object with a picture's path, its caption and its concept in these fields.
    Pairs {
        image: String,
        caption: String,
        concept: Option<String>,
    },
}

impl Format {
    /// Whether a file of one document per line is read as one document.
    fn ignores_lines(&self, path: &Path) -> bool {
        match self {
            // What cannot be looked at cannot be read either.
            Self::Text(name) => is_json_lines(name.as_deref().unwrap_or(path)).unwrap_or(false),
            Self::Code(_)
            | Self::Lines(_)
            | Self::Rows(_)
            | Self::Tokens(_)
            | Self::Emoji
            | Self::Pairs { .. } => false,
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
                Ok(lines) => return Box::new(lines.map(|line| line.map(Entry::from))),
                Err(error) => Err(error),
            },
            Self::Rows(column) => match Rows::open(path, column) {
                Ok(rows) => return Box::new(rows.map(|row| row.map(Entry::from))),
                Err(error) => Err(error),
            },
            Self::Tokens(texts) => match TokenFile::open(path, texts.clone()) {
                Ok(file) => return Box::new(file.map(|document| document.map(Entry::from))),
                Err(error) => Err(error),
            },
            Self::Emoji => return Box::new(emoji::entry(path).map(Ok).into_iter()),
            Self::Pairs {
                image,
                caption,
                concept,
            } => match Pairs::open(path, image, caption, concept.as_deref()) {
                Ok(pairs) => return Box::new(pairs.map(|pair| pair.map(Entry::from))),
                Err(error) => Err(error),
            },
        };
        Box::new(iter::once(document.map(Entry::from)))
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
    /// What makes pictures into tiles, if they are to be read.
    processor: Option<Processor>,
    /// Documents whose pictures have been read.
    pictured: VecDeque<Result<Entry, DataError>>,
}

/// Documents that `on_error = "skip"` leaves out. A file of another kind and a link that leads nowhere count as one.
#[derive(Debug, Default)]
pub(super) struct LeftOut {
    pub count: u64,
    /// What is wrong with the first of them.
    pub first: Option<Unreadable>,
}

impl LeftOut {
    fn add(&mut self, source_name: &str, error: impl Into<Unreadable>) {
        let error = error.into();
        tracing::debug!("source {source_name:?}: left out: {error}");
        self.count += 1;
        self.first.get_or_insert(error);
    }
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

    /// Reads the next documents with their pictures. Documents whose pictures cannot be read are left out, or the first of
    /// them is the last.
    fn read_pictures(&mut self) {
        let entries: Vec<_> = iter::from_fn(|| self.document())
            .take(PICTURES_AT_ONCE)
            .collect();
        let Some(processor) = &self.processor else {
            self.pictured.extend(entries);
            return;
        };
        let cores = thread::available_parallelism().map_or(1, NonZero::get);
        let mut rest = entries;
        let read = thread::scope(|scope| {
            let mut threads = Vec::new();
            while !rest.is_empty() {
                let share = rest.len().min(PICTURES_AT_ONCE.div_ceil(cores));
                let part: Vec<_> = rest.drain(..share).collect();
                threads.push(scope.spawn(move || {
                    let entries = part.into_iter();
                    let with_pictures = |entry: Result<Entry, DataError>| {
                        entry.map(|entry| entry.with_pixels(processor))
                    };
                    entries.map(with_pictures).collect::<Vec<_>>()
                }));
            }
            let threads = threads.into_iter();
            let parts = threads.map(|thread| thread.join().expect("decoders do not panic"));
            parts.flatten().collect::<Vec<_>>()
        });
        for entry in read {
            match entry {
                Ok(Err(error)) if self.on_error == OnError::Skip => {
                    self.left_out.add(&self.name, error);
                }
                Ok(Err(error)) => {
                    self.remaining = 0;
                    self.pictured.push_back(Err(DataError::Picture {
                        source_name: self.name.clone(),
                        error: Box::new(error),
                    }));
                    return;
                }
                Ok(Ok(entry)) => self.pictured.push_back(Ok(entry)),
                Err(error) => self.pictured.push_back(Err(error)),
            }
        }
    }

    /// The next document, without its picture.
    fn document(&mut self) -> Option<Result<Entry, DataError>> {
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
                Some(Ok(entry)) if entry.document.text.is_empty() => {}
                Some(Ok(entry)) => {
                    let bytes = entry.document.text.len() as u64;
                    self.remaining = self.remaining.saturating_sub(bytes);
                    return Some(Ok(entry));
                }
                // A disk that cannot be read is not the fault of the document.
                Some(Err(error))
                    if self.on_error == OnError::Skip && !matches!(error, TextError::Io { .. }) =>
                {
                    self.left_out.add(&self.name, error);
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

impl Iterator for Reader {
    type Item = Result<Entry, DataError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.processor.is_none() {
            return self.document();
        }
        loop {
            if let Some(entry) = self.pictured.pop_front() {
                return Some(entry);
            }
            let left_out = self.left_out.count;
            self.read_pictures();
            // All of them may have been left out.
            if self.pictured.is_empty() && self.left_out.count == left_out {
                return None;
            }
        }
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
            tiles: None,
        }
    }

    fn texts(source: &SourceConfig) -> Vec<Result<String, String>> {
        let documents = open(source, None, false).unwrap();
        documents
            .map(|document| {
                document
                    .map(|entry| entry.document.text)
                    .map_err(|error| error.to_string())
            })
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
        write("b.jsonl", b"\x1F\x8B\n\n\n"); // damaged
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
        let mut reader = open(&lines, None, false).unwrap();
        assert_eq!(reader.by_ref().map(Result::unwrap).count(), 1);
        assert_eq!(reader.left_out().count, expected);
        let first = reader.left_out().first.as_ref().unwrap().to_string();
        assert!(
            first.contains("a.jsonl:2: invalid JSON at column 1"),
            "{first}"
        );

        lines.on_error = OnError::Fail;
        assert!(open(&lines, None, false).unwrap().nth(1).unwrap().is_err());
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
            let mut reader = open(source, None, false).unwrap();
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
