//! `cargo infer eval`: loss, bits per byte and router health on text, and on [captions] of pictures.

pub mod captions;
pub mod captions_page;
pub mod maps;
mod routers;

use std::fmt;
use std::path::PathBuf;
use std::time::Instant;

use firebox_console::report::Table;
use firebox_model::batch::Sequence;
use firebox_model::evaluate::{self, Evaluation};
use firebox_model::network::Network;
use firebox_text::documents::{TEXT_FIELD, is_json_lines, is_parquet};
use firebox_text::packing::{PackedText, PackingError};
use serde::Serialize;

use crate::InferError;
use crate::engine::{Engine, warn_of_special_places};

pub use self::routers::Routers;

/// The text to evaluate on, and how much of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Text {
    /// Each file is one document; a file of JSON lines has one document per line (see [`is_json_lines`]), a Parquet file one
    /// per row.
    pub files: Vec<PathBuf>,
    /// The field of a JSON line, or the column of a Parquet file, that contains the text; `None` for [`TEXT_FIELD`].
    pub field: Option<String>,
    /// Stop after this many predicted tokens.
    pub max_tokens: Option<u64>,
}

impl Text {
    /// The field of a JSON line that contains the text.
    pub fn field(&self) -> &str {
        self.field.as_deref().unwrap_or(TEXT_FIELD)
    }

    /// Checks that the files exist, before a model is loaded.
    ///
    /// # Errors
    ///
    /// The first path that is not a file.
    pub fn check_files(&self) -> Result<(), InferError> {
        for path in &self.files {
            if path.is_dir() {
                return Err(InferError::NotAFile { path: path.clone() });
            }
            if !path.exists() && !path.is_symlink() {
                return Err(InferError::Missing {
                    option: "--data",
                    path: path.clone(),
                });
            }
        }
        Ok(())
    }

    /// The same, and that a given field is of use.
    ///
    /// # Errors
    ///
    /// As there, and a field where no file is read as JSON lines.
    pub fn check(&self) -> Result<(), InferError> {
        self.check_files()?;
        let mut lines = 0;
        for path in &self.files {
            if is_parquet(path) || is_json_lines(path).map_err(PackingError::from)? {
                lines += 1;
            } else if path
                .extension()
                .is_some_and(|own| own.eq_ignore_ascii_case("json"))
            {
                tracing::info!(
                    "{} is read as one plain text, because its first line is not an object of JSON lines",
                    path.display()
                );
            }
        }
        match &self.field {
            Some(field) if lines == 0 => Err(InferError::FieldUnused {
                field: field.clone(),
            }),
            _ => Ok(()),
        }
    }

    /// Reads, encodes and packs the documents exactly as training does with validation text.
    ///
    /// # Errors
    ///
    /// When a file cannot be read or encoded, or there is nothing to predict.
    pub fn pack(&self, engine: &Engine) -> Result<PackedText, InferError> {
        let limit = self.max_tokens;
        let packed = PackedText::read(&engine.tokenizer, &self.files, self.field(), limit)?;
        engine.check(packed.tokens())?;
        warn_of_special_places(&engine.tokenizer, packed.special_places());
        Ok(packed)
    }
}

/// The result of `cargo infer eval`; the fields are those of its `--json`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// Number of predicted tokens.
    pub tokens: u64,
    /// Number of UTF-8 bytes of the predicted tokens.
    pub bytes: u64,
    /// Mean cross-entropy in nats per token.
    pub nats_per_token: f64,
    /// `exp(nats_per_token)`; null in JSON if that overflows.
    pub perplexity: f64,
    /// Comparable between tokenizers; see [`Evaluation::bits_per_byte`].
    pub bits_per_byte: f64,
    /// Router health.
    #[serde(flatten)]
    pub routers: Routers,
    /// Predicted tokens per second, without loading the model and encoding the text.
    pub tokens_per_second: f64,
    /// The device's name.
    pub device: String,
}

impl Report {
    fn new(evaluation: Evaluation, engine: &Engine, seconds: f64) -> Self {
        Self {
            tokens: evaluation.tokens,
            bytes: evaluation.bytes,
            nats_per_token: evaluation.nats_per_token,
            perplexity: evaluation.perplexity,
            bits_per_byte: evaluation.bits_per_byte,
            tokens_per_second: evaluation.tokens as f64 / seconds,
            device: engine.device.clone(),
            routers: Routers::of(evaluation, engine.model.config()),
        }
    }
}

/// The default sequence length in tokens: the model's context, capped so that the attention scores of long sequences do
/// not exhaust memory.
pub fn default_context(engine: &Engine) -> usize {
    engine.model.config().context_length.min(2048)
}

/// Evaluates packed text on an engine's [`network`](Engine::network) in sequences of `context` tokens, `rows` at a time;
/// `progress` is called with the number of tokens done.
///
/// # Errors
///
/// When `context` exceeds the model's, or the loss is not finite.
pub fn evaluate(
    engine: &Engine,
    network: &mut dyn Network,
    text: &PackedText,
    context: usize,
    rows: usize,
    progress: impl FnMut(u64),
) -> Result<Report, InferError> {
    let largest = engine.model.config().context_length;
    if context > largest {
        return Err(InferError::Context { context, largest });
    }
    let started = Instant::now();
    let windows = text.windows(context);
    let sequences = windows.map(|window| Sequence::of_window(window, context, engine.document_end));
    let evaluation = evaluate::evaluate(network, sequences, text.bytes(), rows, progress);
    check_finite(engine, evaluation.nats_per_token)?;
    let seconds = started.elapsed().as_secs_f64();
    Ok(Report::new(evaluation, engine, seconds))
}

/// Checks a loss.
fn check_finite(engine: &Engine, nats: f64) -> Result<(), InferError> {
    match nats.is_finite() {
        true => Ok(()),
        false => Err(InferError::NotFinite {
            device: engine.device.clone(),
            nats,
        }),
    }
}

impl fmt::Display for Report {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rows = [
            ("tokens", self.tokens.to_string()),
            ("bytes", self.bytes.to_string()),
            ("nats per token", format!("{:.6}", self.nats_per_token)),
            ("perplexity", format!("{:.4}", self.perplexity)),
            ("bits per byte", format!("{:.6}", self.bits_per_byte)),
            (
                "tokens/s",
                format!("{:.0} on {}", self.tokens_per_second, self.device),
            ),
        ];
        let list = rows
            .into_iter()
            .fold(Table::new("").texts(["", ""]), |list, (name, value)| {
                list.row([name.into(), value.into()])
            });
        write!(formatter, "{list}{}", self.routers)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use firebox_console::advice::Advise as _;
    use firebox_kernels::dtype::WeightDtype;
    use firebox_model::evaluate::ROWS;
    use firebox_runtime::device;

    use super::*;
    use crate::testing::{TinyCheckpoint, tiny_config};

    const DOCUMENTS: [&str; 2] = ["Heat the boiler.\n", "Feuer für die Maschine: 火"];

    fn engine(config: &firebox_model::config::ModelConfig) -> Engine {
        Engine::open(
            TinyCheckpoint::new(config, 3).path(),
            &[],
            device::default_name(),
            WeightDtype::F32,
        )
        .unwrap()
    }

    fn text(folder: &Path, files: &[(&str, String)]) -> Text {
        let write = |(name, content): &(&str, String)| {
            fs::write(folder.join(name), content).unwrap();
            folder.join(name)
        };
        Text {
            files: files.iter().map(write).collect(),
            field: None,
            max_tokens: None,
        }
    }

    #[test]
    fn files_and_lines_of_the_same_text_give_the_same_number() {
        let engine = engine(&tiny_config());
        let folder = tempfile::tempdir().unwrap();
        let [first, second] = DOCUMENTS.map(str::to_owned);
        let files = text(folder.path(), &[("a.txt", first), ("b.md", second)]);
        let line = |text: &str| serde_json::json!({ "content": text }).to_string();
        let lines = DOCUMENTS.map(line).join("\n");
        let lines = Text {
            field: Some("content".to_owned()),
            ..text(folder.path(), &[("c.jsonl", lines)])
        };

        let (files, lines) = (files.pack(&engine).unwrap(), lines.pack(&engine).unwrap());
        assert_eq!(files, lines);
        let bytes = DOCUMENTS.concat().len() as u64;
        // An EOS token follows each document, and the first byte is not predicted.
        assert_eq!((files.targets(), files.bytes()), (bytes + 1, bytes - 1));

        let report = evaluate(
            &engine,
            &mut *engine.network(),
            &files,
            default_context(&engine),
            ROWS,
            |_| (),
        )
        .unwrap();
        assert_eq!((report.tokens, report.bytes), (bytes + 1, bytes - 1));
        let bits = report.nats_per_token * report.tokens as f64 / report.bytes as f64 / 2f64.ln();
        assert!((report.bits_per_byte - bits).abs() < 1e-12);
    }

    #[test]
    fn documents_are_seen_as_in_training() {
        let mut engine = engine(&tiny_config());
        let folder = tempfile::tempdir().unwrap();
        let mut nats = |files: &[&str], document_end: Option<u32>| {
            engine.document_end = document_end;
            let lines = files
                .iter()
                .map(|text| format!("{{\"text\": \"{text}\"}}\n"));
            let lines = text(folder.path(), &[("a.jsonl", lines.collect())]);
            let packed = lines.pack(&engine).unwrap();
            let report =
                evaluate(&engine, &mut *engine.network(), &packed, 32, ROWS, |_| ()).unwrap();
            report.nats_per_token * report.tokens as f64
        };
        let end = Some(256);
        let [one, two] = ["The kettle", "sings a song"];
        // The first byte of a text is not predicted; packed, that of the second is, by the end of the first.
        let together = nats(&[one, two], end);
        let with_next = nats(&[one, &two[..2]], end) - nats(&[&two[..2]], end);
        let apart = with_next + nats(&[two], end);
        assert!(
            (together - apart).abs() < 1e-4,
            "{together} against {apart}"
        );
        let seeing_all = nats(&[one, two], None);
        assert!((together - seeing_all).abs() > 1e-2, "{together}");
        assert_eq!(nats(&[one], end), nats(&[one], None));
    }

    #[test]
    fn json_lines_of_every_name_give_the_same_tokens() {
        let engine = engine(&tiny_config());
        let folder = tempfile::tempdir().unwrap();
        let packed = |name: &str| {
            let text = Text {
                field: Some("body".to_owned()),
                ..text(folder.path(), &[(name, "{\"body\": \"one\"}\n".to_owned())])
            };
            text.check().unwrap();
            text.pack(&engine).unwrap()
        };
        let lines = packed("a.jsonl");
        assert_eq!(lines.targets(), 3);
        for name in ["a.json", "a.ndjson", "a.JSON"] {
            assert_eq!(packed(name), lines, "{name}");
        }
    }

    #[test]
    fn a_field_without_json_lines_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let pretty = ("a.json", "{\n\"body\": 1}".to_owned());
        let mut text = text(folder.path(), &[pretty, ("b.txt", "b".to_owned())]);
        text.check().unwrap();
        text.field = Some("body".to_owned());
        let error = text.check().unwrap_err();
        assert!(
            error.to_string().starts_with("--field body has no effect") && error.exit_code() == 2,
            "{error}"
        );
    }

    #[test]
    fn a_missing_field_is_named_with_those_that_are_there() {
        let engine = engine(&tiny_config());
        let folder = tempfile::tempdir().unwrap();
        let lines = "{\"id\": 1, \"content\": \"a\"}\n".to_owned();
        let text = text(folder.path(), &[("a.jsonl", lines)]);
        let error = text.pack(&engine).unwrap_err();
        assert_eq!(
            error.hint().unwrap(),
            "--field NAME names the field with the text; this line has \"id\", \"content\""
        );
    }

    #[test]
    fn the_token_limit_is_respected() {
        let engine = engine(&tiny_config());
        let folder = tempfile::tempdir().unwrap();
        let text = Text {
            max_tokens: Some(70),
            ..text(
                folder.path(),
                &[("a.txt", "x".repeat(500)), ("b.txt", "y".repeat(500))],
            )
        };
        assert_eq!(text.pack(&engine).unwrap().targets(), 70);
    }

    #[test]
    fn a_report_has_a_row_for_each_router() {
        let engine = engine(&tiny_config());
        let folder = tempfile::tempdir().unwrap();
        let text = text(folder.path(), &[("a.txt", DOCUMENTS.concat())])
            .pack(&engine)
            .unwrap();
        let mut reported = 0;
        let report = evaluate(
            &engine,
            &mut *engine.network(),
            &text,
            default_context(&engine),
            1,
            |tokens| reported = tokens,
        )
        .unwrap();
        assert_eq!(reported, report.tokens);
        let shape: Vec<usize> = report.routers.expert_load.iter().map(Vec::len).collect();
        assert_eq!(shape, [4, 4]);
        for load in &report.routers.expert_load {
            assert!((load.iter().sum::<f64>() - 1.0).abs() < 1e-9);
        }
        let mean = (report.routers.balance[0] + report.routers.balance[1]) / 2.0;
        assert_eq!(report.routers.balance_mean, Some(mean));
        assert_eq!(report.to_string().lines().count(), 6 + 2 + 2);
    }

    #[test]
    fn a_dense_model_has_no_router_rows() {
        let engine = engine(&tiny_config().dense_baseline());
        let folder = tempfile::tempdir().unwrap();
        let text = text(folder.path(), &[("a.txt", DOCUMENTS.concat())])
            .pack(&engine)
            .unwrap();
        let report = evaluate(
            &engine,
            &mut *engine.network(),
            &text,
            default_context(&engine),
            ROWS,
            |_| (),
        )
        .unwrap();
        assert_eq!(
            (report.routers.balance.len(), report.routers.balance_mean),
            (0, None)
        );
        assert_eq!(report.to_string().lines().count(), 6);
    }

    #[test]
    fn nothing_to_predict_is_an_error() {
        let engine = engine(&tiny_config());
        let folder = tempfile::tempdir().unwrap();
        let error = text(folder.path(), &[("a.jsonl", "\n".to_owned())])
            .pack(&engine)
            .unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("there is no text to evaluate in"),
            "{error}"
        );
    }
}
