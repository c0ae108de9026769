//! Generated texts as JSON lines: to a writer, or to a file that continues where it was left.

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use firebox_console::durable::{self, FileError};
use serde::{Deserialize, Serialize};

use super::prompts::{Id, describe};
use crate::InferError;

/// Time between two moments at which all that was written is made to be on the disk.
const SYNC_INTERVAL: Duration = Duration::from_secs(2);

/// A generated text.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Answer {
    /// That of the prompt.
    pub id: Id,
    /// The continuation, without the prompt.
    pub text: String,
    /// Number of generated tokens.
    pub tokens: usize,
    /// `stop` after an end-of-text token, `length` after the maximum number of tokens.
    pub finish_reason: FinishReason,
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FinishReason {
    /// At an end-of-text token.
    Stop,
    /// At the maximum number of tokens.
    Length,
}

/// Where answers go.
#[derive(Debug)]
pub enum Answers<W> {
    /// To a writer, flushed after each.
    Writer(W),
    /// To the end of a file.
    File(AnswerFile),
}

/// A file that grows by whole lines.
#[derive(Debug)]
pub struct AnswerFile {
    path: PathBuf,
    file: File,
    /// What it held when it was opened.
    ids: HashSet<Id>,
    synced: Instant,
}

impl<W: Write> Answers<W> {
    /// Appends to a file, which is created if it is not there. A last line that a crash left unfinished is removed.
    ///
    /// # Errors
    ///
    /// When it cannot be read or written, or has other lines than answers.
    pub fn file(path: &Path) -> Result<Self, InferError> {
        let failed = |action| move |error| InferError::Write(FileError::of(action, path)(error));
        let mut ids = HashSet::new();
        let mut lock = None;
        match fs::metadata(path) {
            Ok(found) if !found.is_file() => {
                let error = io::Error::other("it is not a regular file");
                return Err(failed("write")(error));
            }
            Ok(_) => {
                lock = Some(locked(path)?);
                let content = fs::read(path).map_err(failed("read"))?;
                let whole = content
                    .iter()
                    .rposition(|&byte| byte == b'\n')
                    .map_or(0, |at| at + 1);
                // None of the lines, if there is no line feed.
                let lines = content[..whole].strip_suffix(b"\n").into_iter();
                let lines = lines.flat_map(|lines| lines.split(|&byte| byte == b'\n'));
                for (number, line) in (1..).zip(lines) {
                    let id = id_of(line).map_err(|reason| InferError::AnswerLine {
                        file: path.to_owned(),
                        line: number,
                        reason,
                    })?;
                    ids.insert(id);
                }
                if whole < content.len() {
                    // A crash leaves a line that ends too early; anything else is somebody's text.
                    let rest = serde_json::from_slice::<Found>(&content[whole..]);
                    if let Err(error) = rest
                        && !error.is_eof()
                    {
                        return Err(InferError::AnswerLine {
                            file: path.to_owned(),
                            line: content[..whole]
                                .iter()
                                .filter(|&&byte| byte == b'\n')
                                .count()
                                + 1,
                            reason: describe(&error),
                        });
                    }
                    let file = File::options().write(true).open(path);
                    let cut = file.and_then(|file| file.set_len(whole as u64));
                    cut.map_err(failed("write"))?;
                }
            }
            Err(error) if error.kind() == ErrorKind::NotFound => durable::write(path, "")?,
            Err(error) => return Err(failed("read")(error)),
        }
        let file = match lock {
            Some(file) => file,
            None => locked(path)?,
        };
        Ok(Self::File(AnswerFile {
            path: path.to_owned(),
            file,
            ids,
            synced: Instant::now(),
        }))
    }

    /// Whether there is an answer of this id already.
    pub fn has(&self, id: &Id) -> bool {
        match self {
            Self::Writer(_) => false,
            Self::File(file) => file.ids.contains(id),
        }
    }

    /// Writes an answer as a line.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(&mut self, answer: &Answer) -> Result<(), InferError> {
        let mut line = serde_json::to_string(answer).expect("strings and numbers");
        line.push('\n');
        match self {
            Self::Writer(writer) => {
                let written = writer.write_all(line.as_bytes());
                written
                    .and_then(|()| writer.flush())
                    .map_err(InferError::Output)
            }
            Self::File(file) => {
                let written = file.file.write_all(line.as_bytes());
                written.map_err(FileError::of("write", &file.path))?;
                match file.synced.elapsed() >= SYNC_INTERVAL {
                    true => file.sync(),
                    false => Ok(()),
                }
            }
        }
    }

    /// Waits until all is on the disk.
    ///
    /// # Errors
    ///
    /// When that fails.
    pub fn finish(&mut self) -> Result<(), InferError> {
        match self {
            Self::Writer(_) => Ok(()),
            Self::File(file) => file.sync(),
        }
    }
}

impl AnswerFile {
    fn sync(&mut self) -> Result<(), InferError> {
        self.file
            .sync_data()
            .map_err(FileError::of("write", &self.path))?;
        self.synced = Instant::now();
        Ok(())
    }
}

/// Opens a file to append to it, which no other process does until it is closed. The lock is the operating system's, so
/// that it ends with the process.
fn locked(path: &Path) -> Result<File, InferError> {
    let file = File::options()
        .append(true)
        .open(path)
        .map_err(FileError::of("write", path))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            return Err(InferError::OutputInUse {
                file: path.to_owned(),
            });
        }
        Err(TryLockError::Error(error)) => tracing::warn!(
            "cannot lock {}: {error}; make sure that no other process writes to it",
            path.display()
        ),
    }
    Ok(file)
}

/// An answer in a file.
#[derive(Deserialize)]
struct Found {
    id: Id,
    #[serde(rename = "text")]
    _text: String,
}

/// The id of an answer.
fn id_of(line: &[u8]) -> Result<Id, String> {
    serde_json::from_slice::<Found>(line)
        .map(|found| found.id)
        .map_err(|error| describe(&error))
}

#[cfg(test)]
mod tests {
    use firebox_console::advice::Advise as _;

    use super::*;

    fn answer(id: Id, text: &str) -> Answer {
        Answer {
            id,
            text: text.to_owned(),
            tokens: 2,
            finish_reason: FinishReason::Stop,
        }
    }

    fn open(path: &Path) -> Result<Answers<Vec<u8>>, InferError> {
        Answers::file(path)
    }

    #[test]
    fn a_file_continues_after_its_last_whole_line() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("texts.jsonl");
        let (first, second) = (Id::Number(1), Id::Text("b".to_owned()));
        let mut answers = open(&path).unwrap();
        assert!(!answers.has(&first));
        answers.write(&answer(first.clone(), "ü\n")).unwrap();
        answers.finish().unwrap();
        drop(answers);
        let whole = fs::read_to_string(&path).unwrap();
        assert_eq!(
            whole,
            "{\"id\":1,\"text\":\"ü\\n\",\"tokens\":2,\"finish_reason\":\"stop\"}\n"
        );
        fs::write(&path, format!("{whole}{{\"id\":\"b\",\"te")).unwrap();
        let mut answers = open(&path).unwrap();
        assert!(answers.has(&first) && !answers.has(&second));
        answers.write(&answer(second.clone(), "c")).unwrap();
        answers.finish().unwrap();
        drop(answers);
        let found = fs::read_to_string(&path).unwrap();
        assert!(found.starts_with(&whole), "{found}");
        assert_eq!(found.lines().count(), 2, "{found}");
        assert!(open(&path).unwrap().has(&second));
    }

    #[test]
    fn a_file_of_something_else_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes.txt");
        for content in [
            "a note\n",
            "{\"id\": 1, \"text\": \"a\"}\n{\"prompt\": \"a\"}\n",
            "a note",
            "{\"prompt\": \"a\"}",
        ] {
            fs::write(&path, content).unwrap();
            let error = open(&path).unwrap_err();
            assert_eq!(error.exit_code(), 2);
            let line = content.lines().count();
            assert!(
                error
                    .to_string()
                    .contains(&format!("notes.txt:{line} is not")),
                "{error}"
            );
            assert_eq!(fs::read_to_string(&path).unwrap(), content);
        }
        let error = open(folder.path()).unwrap_err();
        assert!(error.to_string().contains("not a regular file"), "{error}");
    }

    #[test]
    fn a_file_has_one_writer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("texts.jsonl");
        for _ in 0..2 {
            let first = open(&path).unwrap();
            let error = open(&path).unwrap_err();
            assert_eq!(error.exit_code(), 1);
            assert!(error.to_string().contains("another process"), "{error}");
            drop(first);
        }
    }
}
