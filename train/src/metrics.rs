//! `metrics.jsonl`: one JSON object per logged step or validation, without gaps or repeats across resumes.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead, BufReader, Seek, Write};
use std::path::Path;

use firebox_model::evaluate::Evaluation;
use firebox_model::moe::stats::LayerHealth;
use serde::{Deserialize, Serialize};

use crate::data::HeldOutPicture;
use crate::looking::HeldOutLoss;
use crate::ranks::{RankRecord, TrainLayout};

/// One line of the file.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Record {
    /// What is trained; the first line.
    Start(StartRecord),
    /// A training step.
    Train(TrainRecord),
    /// A validation.
    Validation(ValidationRecord),
    /// The continuation of `[train.sample]`'s prompt by the model that was validated.
    Sample(SampleRecord),
}

/// What a run trains, and on what.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct StartRecord {
    /// 0: before the first step.
    pub step: u64,
    /// Number of parameters.
    pub parameters: u64,
    /// Number of parameters that a token passes through.
    pub active_parameters: u64,
    /// The training sources, in the order of the configuration.
    pub sources: Vec<SourceRecord>,
}

/// A training source.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SourceRecord {
    /// Its name.
    pub name: String,
    /// Number of its tokens, each counted once.
    pub tokens: u64,
    /// Its part of all sequences that are seen, between 0 and 1; a caption is a sequence.
    pub part: f64,
}

/// A text that the model wrote.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SampleRecord {
    /// Optimizer steps done.
    pub step: u64,
    /// The text, its prompt included.
    pub text: String,
}

/// A training step. The values are those of the step's own batch; nothing is smoothed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TrainRecord {
    /// Optimizer steps done, this one included.
    pub step: u64,
    /// Tokens trained on so far, including repetitions.
    pub tokens: u64,
    /// Cross-entropy of the batch in nats per token, without auxiliary terms.
    pub loss: f64,
    /// The loss plus the auxiliary terms, which the gradient is taken of.
    pub total_loss: f64,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Global norm of the gradient before clipping.
    pub gradient_norm: f64,
    /// Number of tokens in the batch.
    pub batch_tokens: u64,
    /// Mean number of the batch's tokens per expert: batch · top_k / experts. `None` for a dense model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_expert: Option<f64>,
    /// Tokens per second since the last line.
    pub tokens_per_second: f64,
    /// Model FLOP/s since the last line: 6 per active weight and token.
    pub flops_per_second: f64,
    /// Training time so far, in seconds, excluding interruptions.
    pub seconds: f64,
    /// How ranks divide the step, where there are several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layout: Option<TrainLayout>,
    /// What each of them has done.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranks: Vec<RankRecord>,
    /// Router health per layer; empty for a dense model.
    pub layers: Vec<LayerHealth>,
}

/// A validation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ValidationRecord {
    /// Optimizer steps done.
    pub step: u64,
    /// Tokens trained on so far, including repetitions.
    pub trained_tokens: u64,
    /// Training time so far, in seconds, excluding interruptions.
    pub seconds: f64,
    /// Loss and router health.
    #[serde(flatten)]
    pub validation: Validation,
}

/// The result of a validation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Validation {
    /// Loss and router health on all of its text, which decides about the best checkpoint.
    #[serde(flatten)]
    pub whole: Evaluation,
    /// Loss on the part of each source with held-out text.
    pub sources: Vec<SourceLoss>,
    /// Whether a model that sees pictures looks at them; empty for a model of text alone.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub captions: Vec<HeldOutLoss>,
}

/// The loss on the held-out text of one source.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceLoss {
    /// The source's name.
    pub name: String,
    /// Number of predicted tokens.
    pub tokens: u64,
    /// Number of UTF-8 bytes of the predicted tokens.
    pub bytes: u64,
    /// Mean cross-entropy in nats per token.
    pub nats_per_token: f64,
    /// Comparable between tokenizers; see [`Evaluation::bits_per_byte`].
    pub bits_per_byte: f64,
}

impl SourceLoss {
    /// The loss of a source's evaluation.
    pub fn new(name: String, evaluation: &Evaluation) -> Self {
        Self {
            name,
            tokens: evaluation.tokens,
            bytes: evaluation.bytes,
            nats_per_token: evaluation.nats_per_token,
            bits_per_byte: evaluation.bits_per_byte,
        }
    }
}

/// The lowest loss of held-out captions behind their pictures, of one kind, in the validations of a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Lowest {
    /// Why they are held out.
    pub held_out: HeldOutPicture,
    /// Optimizer steps done.
    pub step: u64,
    /// Nats per token.
    pub nats_per_token: f64,
}

/// The lowest losses of captions in a metrics file, in the order of their kinds; nothing of a model of text alone.
///
/// # Errors
///
/// When it cannot be read.
pub fn lowest(path: &Path) -> io::Result<Vec<Lowest>> {
    /// What of a line is about captions.
    #[derive(Deserialize)]
    struct Line {
        step: u64,
        #[serde(default)]
        captions: Vec<Kind>,
    }
    #[derive(Deserialize)]
    struct Kind {
        held_out: HeldOutPicture,
        /// `None` where the loss was no number.
        right: Option<f64>,
    }
    let mut lowest: Vec<Lowest> = Vec::new();
    for line in BufReader::new(File::open(path)?).lines() {
        let Line { step, captions } = serde_json::from_str(&line?)?;
        for Kind { held_out, right } in captions {
            let Some(right) = right else { continue };
            let found = Lowest {
                held_out,
                step,
                nats_per_token: right,
            };
            match lowest.iter_mut().find(|lowest| lowest.held_out == held_out) {
                Some(lowest) if lowest.nats_per_token <= right => {}
                Some(lowest) => *lowest = found,
                None => lowest.push(found),
            }
        }
    }
    Ok(lowest)
}

/// The part of a line that decides whether a resume keeps it.
#[derive(Deserialize)]
struct LineStep {
    step: u64,
}

/// An open metrics file.
#[derive(Debug)]
pub struct MetricsLog {
    file: File,
}

impl MetricsLog {
    /// Creates a file, or takes the place of an existing one; its first line is `start`.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn create(path: &Path, start: StartRecord) -> io::Result<Self> {
        let mut log = Self {
            file: File::create(path)?,
        };
        log.write(&Record::Start(start))?;
        Ok(log)
    }

    /// Opens the file of a run that resumes after `step`. Removes later lines, which will be written again, and an
    /// incomplete last line.
    ///
    /// # Errors
    ///
    /// When it cannot be read or written.
    pub fn resume(path: &Path, step: u64) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let mut reader = BufReader::new(&file);
        let (mut line, mut keep) = (Vec::new(), 0);
        loop {
            line.clear();
            let length = reader.read_until(b'\n', &mut line)?;
            let complete = line.ends_with(b"\n")
                && serde_json::from_slice::<LineStep>(&line)
                    .is_ok_and(|record| record.step <= step);
            if !complete {
                break;
            }
            keep += length as u64;
        }
        file.set_len(keep)?;
        file.seek(io::SeekFrom::End(0))?;
        Ok(Self { file })
    }

    /// Appends a line.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(&mut self, record: &Record) -> io::Result<()> {
        let mut line = serde_json::to_string(record)?;
        line.push('\n');
        self.file.write_all(line.as_bytes())
    }

    /// Syncs all lines to disk.
    ///
    /// # Errors
    ///
    /// When they cannot be written.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn the_lowest_loss_of_each_kind_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let line = |step: u64, losses: [f64; 2]| {
            let kinds = ["combination", "concept"].iter().zip(losses);
            let kinds = kinds.map(|(kind, right)| {
                format!("{{\"held_out\":\"{kind}\",\"right\":{right},\"none\":9.0}}")
            });
            let kinds: Vec<String> = kinds.collect();
            format!(
                "{{\"kind\":\"validation\",\"step\":{step},\"captions\":[{}]}}\n",
                kinds.join(",")
            )
        };
        let text = line(0, [3.0, 4.0])
            + "{\"kind\":\"train\",\"step\":1}\n"
            + &line(5, [1.0, 2.0])
            + &line(9, [1.5, 1.0]);
        fs::write(&path, text).unwrap();
        let found = lowest(&path).unwrap().into_iter();
        let found: Vec<(u64, f64)> = found.map(|low| (low.step, low.nats_per_token)).collect();
        assert_eq!(found, [(5, 1.0), (9, 1.0)]);
    }

    #[test]
    fn a_resume_leaves_no_gap_and_no_repeat() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let lines = "{\"kind\":\"train\",\"step\":1}\n{\"kind\":\"train\",\"step\":2}\n{\"kind\":\"validation\",\"step\":2}\n{\"step\":3}\n{\"ste";
        fs::write(&path, lines).unwrap();
        let mut log = MetricsLog::resume(&path, 2).unwrap();
        log.file.write_all(b"next\n").unwrap();
        let kept = fs::read_to_string(&path).unwrap();
        assert_eq!(kept.lines().count(), 4);
        assert!(kept.ends_with("{\"kind\":\"validation\",\"step\":2}\nnext\n"));
    }
}
