//! Generated texts as JSON lines: to a writer, or to a file that continues where it was left.

use std::collections::HashMap;
use std::fs::{self, File, TryLockError};
use std::io::Write;
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
    /// A hash of what the text depends on: the checkpoint's folder and when its weights were written, how they are
    /// computed with, the prompt, and the options.
    pub request: String,
}

/// Why a text ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The answers that it held when it was opened.
    known: HashMap<Id, Known>,
    synced: Instant,
}

/// An answer of an earlier command.
#[derive(Debug)]
struct Known {
    /// Its line, from 1.
    line: usize,
    request: String,
}

impl<W: Write> Answers<W> {
    /// Appends to a file, which is created if it is not there. A last line that a crash left unfinished is removed, with a
    /// warning.
    ///
    /// # Errors
    ///
    /// When it cannot be read or written, another process writes to it, or it has other lines than answers.
    pub fn file(path: &Path) -> Result<Self, InferError> {
        AnswerFile::open(path).map(Self::File)
    }

    /// Whether there is already an answer of this id, which must be one to the same request.
    ///
    /// # Errors
    ///
    /// When it is an answer to another request.
    pub fn has(&self, id: &Id, request: &str) -> Result<bool, InferError> {
        let Self::File(file) = self else {
            return Ok(false);
        };
        match file.known.get(id) {
            None => Ok(false),
            Some(known) if known.request == request => Ok(true),
            Some(known) => Err(InferError::AnswerLine {
                file: file.path.clone(),
                line: known.line,
                reason: format!(
                    "its id {} is now that of another prompt, model or set of options",
                    serde_json::json!(id)
                ),
            }),
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
    fn open(path: &Path) -> Result<Self, InferError> {
        let failed = |action| move |error| InferError::Write(FileError::of(action, path)(error));
        if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
            return Err(InferError::OutputNotAFile {
                file: path.to_owned(),
            });
        }
        // Locked before it is read, so that nobody is in the middle of a line.
        let file = File::options()
            .append(true)
            .create(true)
            .open(path)
            .map_err(failed("write"))?;
        lock(&file, path)?;
        let content = fs::read(path).map_err(failed("read"))?;
        let not_an_answer = |line, reason| InferError::AnswerLine {
            file: path.to_owned(),
            line,
            reason,
        };
        let mut known = HashMap::new();
        let mut number = 0;
        let mut whole = 0;
        for line in content.split_inclusive(|&byte| byte == b'\n') {
            number += 1;
            match Found::parse(line) {
                Ok(found) => {
                    let request = found.request;
                    let line = number;
                    known.insert(found.id, Known { line, request });
                }
                Err(_) if is_cut(line) => break,
                Err(reason) => return Err(not_an_answer(number, reason)),
            }
            whole += line.len();
        }
        let mut answers = Self {
            path: path.to_owned(),
            file,
            known,
            synced: Instant::now(),
        };
        if whole < content.len() {
            tracing::warn!(
                "{}:{number}: removed an unfinished line of {} bytes, which an interrupted command left",
                path.display(),
                content.len() - whole
            );
            answers
                .file
                .set_len(whole as u64)
                .map_err(failed("write"))?;
        } else if content.last().is_some_and(|&last| last != b'\n') {
            answers.file.write_all(b"\n").map_err(failed("write"))?;
        }
        answers.sync()?;
        durable::sync_folder_of(path).map_err(failed("write"))?;
        Ok(answers)
    }

    fn sync(&mut self) -> Result<(), InferError> {
        self.file
            .sync_data()
            .map_err(FileError::of("write", &self.path))?;
        self.synced = Instant::now();
        Ok(())
    }
}

/// Locks a file until it is closed. The lock is the operating system's, so that it ends with the process.
fn lock(file: &File, path: &Path) -> Result<(), InferError> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(InferError::OutputInUse {
            file: path.to_owned(),
        }),
        Err(TryLockError::Error(error)) => {
            tracing::warn!(
                "cannot lock {}: {error}; make sure that no other process writes to it",
                path.display()
            );
            Ok(())
        }
    }
}

/// An answer in a file, with exactly the fields of [`Answer`].
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "a generated text")]
struct Found {
    id: Id,
    #[serde(rename = "text")]
    _text: String,
    #[serde(rename = "tokens")]
    _tokens: usize,
    #[serde(rename = "finish_reason")]
    _finish_reason: FinishReason,
    request: String,
}

impl Found {
    fn parse(line: &[u8]) -> Result<Self, String> {
        // A list would fill the fields in order.
        if line.first() != Some(&b'{') {
            return Err("it is not a JSON object".to_owned());
        }
        serde_json::from_slice(line).map_err(|error| describe(&error))
    }
}

/// Whether a line is the beginning of an answer, as a crash leaves it.
fn is_cut(line: &[u8]) -> bool {
    const BEGINNING: &[u8] = b"{\"id\":";
    let cut = serde_json::from_slice::<serde_json::Value>(line).is_err_and(|error| error.is_eof());
    cut && line.last() != Some(&b'\n') && line.starts_with(BEGINNING)
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
            request: "5e".to_owned(),
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
        let has = |answers: &Answers<_>, id| answers.has(id, "5e").unwrap();
        let mut answers = open(&path).unwrap();
        assert!(!has(&answers, &first));
        answers.write(&answer(first.clone(), "ü\n")).unwrap();
        answers.finish().unwrap();
        drop(answers);
        let whole = fs::read_to_string(&path).unwrap();
        assert_eq!(
            whole,
            "{\"id\":1,\"text\":\"ü\\n\",\"tokens\":2,\"finish_reason\":\"stop\",\"request\":\"5e\"}\n"
        );
        // A line that is cut anywhere, within a character too, and one that lacks its end alone.
        let mut line = serde_json::to_vec(&answer(second.clone(), "ü")).unwrap();
        let length = line.len();
        line.push(b'\n');
        for end in 6..=length {
            fs::write(&path, [whole.as_bytes(), &line[..end]].concat()).unwrap();
            let mut answers = open(&path).unwrap();
            assert!(has(&answers, &first));
            if has(&answers, &second) != (end == length) {
                panic!("cut at {end}");
            }
            if end < length {
                answers.write(&answer(second.clone(), "ü")).unwrap();
            }
            answers.finish().unwrap();
            drop(answers);
            let found = fs::read(&path).unwrap();
            assert_eq!(found, [whole.as_bytes(), &line].concat(), "cut at {end}");
        }
        // An answer to something else is not kept for one to this.
        let answers = open(&path).unwrap();
        let error = answers.has(&second, "77").unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(
            error.to_string().contains("texts.jsonl:2 is not"),
            "{error}"
        );
    }

    #[test]
    fn a_file_of_something_else_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notes.txt");
        for content in [
            "a note\n",
            "{\"id\":1,\"text\":\"a\",\"tokens\":1,\"finish_reason\":\"stop\",\"request\":\"5e\"}\n{\"prompt\": \"a\"}\n",
            "a note",
            "{\"prompt\": \"a\"}",
            "{\"id\":7,\"text\":\"a\"}",
            "{\"id\":7,\"text\":\"a\"}\n",
            "[1,\"a\",2,\"stop\",\"5e\"]\n",
            "{\"my\":\"precious",
            "{",
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
