//! `cargo infer generate`: continues a prompt and streams the text, or continues many prompts at once.

mod answers;
mod draft;
mod many;
mod pictures;
mod prompts;

use std::io::{self, ErrorKind, Write};
use std::sync::Arc;
use std::time::Instant;

use firebox_model::generate::{self, Ended, Receiver, Statistics, Token};
use firebox_model::sampling::Sampling;
use firebox_model::vision::Picture;
use firebox_text::{StreamDecoder, Tokenizer};

use crate::InferError;
use crate::engine::Engine;

pub use answers::{Answer, AnswerFile, Answers, FinishReason};
pub use draft::{Draft, Speculation};
pub use many::{ManyRequest, generate_many};
pub use pictures::read_pictures;
pub use prompts::{Id, Prompt, read_prompts};

/// What to generate.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The text to continue; if empty, the model starts a new document.
    pub prompt: String,
    /// Maximum number of tokens to generate.
    pub max_tokens: usize,
    /// How tokens are sampled.
    pub sampling: Sampling,
    /// The pictures that the text sees. They stand before the prompt, unless it has an image token for each of them.
    pub pictures: Vec<Picture>,
}

/// Statistics of a generation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Generated {
    /// What was counted.
    pub statistics: Statistics,
    /// Elapsed seconds, prefill included.
    pub seconds: f64,
}

/// Writes the prompt and its continuation to `output`: whole characters, flushed after every token, and a final newline.
/// Stops early at an EOS token, when `stopped` returns true, and when the reader closes the output. Logs a warning if the
/// prompt or the text exceeds the model's context.
///
/// # Errors
///
/// When the prompt cannot be encoded, or the output fails for another reason than a closed pipe.
pub fn generate(
    engine: &Engine,
    request: &Request,
    speculation: &Speculation,
    output: &mut impl Write,
    stopped: impl Fn() -> bool,
) -> Result<Generated, InferError> {
    let started = Instant::now();
    let pictures = &request.pictures;
    let prompt = match pictures.is_empty() {
        true => engine.prompt(&request.prompt)?,
        false => engine.prompt_seeing(&request.prompt, pictures.len())?,
    };
    let context = engine.model.config().context_length;
    let mut most = request.max_tokens;
    if !pictures.is_empty() {
        // A text that is cut would lose its image tokens, and see nothing more.
        let room = context
            .checked_sub(prompt.len())
            .ok_or(InferError::LongPrompt {
                tokens: prompt.len(),
                context,
            })?;
        if most > room {
            tracing::warn!(
                "at most {room} tokens are generated: a text that sees pictures ends with the model's context of {context}"
            );
        }
        most = most.min(room);
    }
    if prompt.len() > context {
        tracing::warn!(
            "the prompt has {} tokens; only the last {context}, the model's context, are used",
            prompt.len()
        );
    }
    // The decoder needs the tokens before the first new one: some decoders drop a space at the start of a text.
    let decoder = engine.tokenizer.stream().after(&prompt);

    let mut only = Only {
        written: show(output, &request.prompt),
        output,
        decoder,
        stopped,
        cut: None,
    };
    let mut statistics = Statistics::default();
    let mut timeline = Ok(());
    if only.written.is_ok() {
        let network = &mut *engine.network();
        let text = generate::Request {
            pictures: (!pictures.is_empty()).then(|| Arc::new(network.look(pictures))),
            ..generate::Request::new(prompt, most, request.sampling)
        };
        let options = speculation.options(engine.tokenizer.eos_ids(), 1, 1);
        statistics = generate::generate_all(network, [text], &options, &mut only);
        timeline = engine.finish(network);
    }
    let seconds = started.elapsed().as_secs_f64();
    let rest = only.decoder.finish().unwrap_or_default();
    let written = only.written;
    let written = written.and_then(|()| show(only.output, &format!("{rest}\n")));
    // Not earlier: on a terminal it would stand in the middle of the text.
    if let Some(emitted) = only.cut {
        tracing::warn!(
            "after {emitted} generated tokens the text exceeded the model's context of {context} tokens: from there on its \
             oldest half was dropped whenever the context was full, and positions began anew"
        );
    }
    match written {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(InferError::Output(error)),
        _ => timeline.map(|()| Generated {
            statistics,
            seconds,
        }),
    }
}

/// Shows a text as it comes.
struct Only<'a, W, S> {
    written: io::Result<()>,
    output: &'a mut W,
    decoder: StreamDecoder<&'a Tokenizer>,
    stopped: S,
    cut: Option<usize>,
}

impl<W: Write, S: Fn() -> bool> Receiver for Only<'_, W, S> {
    fn token(&mut self, _: usize, token: Token) -> bool {
        if let Some(text) = self.decoder.push(token.id) {
            self.written = show(self.output, &text);
        }
        self.written.is_ok() && !(self.stopped)()
    }

    fn ended(&mut self, _: usize, ended: Ended) {
        self.cut = ended.cut;
    }
}

fn show(output: &mut impl Write, text: &str) -> io::Result<()> {
    output.write_all(text.as_bytes())?;
    output.flush()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use firebox_kernels::dtype::WeightDtype;
    use firebox_runtime::device;
    use firebox_text::TOKENIZER_FILE;

    use super::*;
    use crate::testing::{TinyCheckpoint, tiny_config};

    fn engine() -> Engine {
        Engine::open(
            TinyCheckpoint::new(&tiny_config(), 5).path(),
            &[],
            device::default_name(),
            WeightDtype::F32,
        )
        .unwrap()
    }

    fn request(prompt: &str, max_tokens: usize, sampling: Sampling) -> Request {
        Request {
            prompt: prompt.to_owned(),
            max_tokens,
            sampling,
            pictures: Vec::new(),
        }
    }

    fn text(engine: &Engine, request: &Request) -> String {
        let mut output = Vec::new();
        let speculation = Speculation::default();
        generate(engine, request, &speculation, &mut output, || false).unwrap();
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn the_same_seed_gives_the_same_text_and_another_seed_differs() {
        let engine = engine();
        let with = |seed| {
            let sampling = Sampling {
                temperature: 1.0,
                seed,
                ..Sampling::default()
            };
            text(&engine, &request("für 火", 40, sampling))
        };
        assert!(with(1).starts_with("für 火") && with(1).ends_with('\n'));
        assert_eq!(with(1), with(1));
        assert_ne!(with(1), with(2));
    }

    #[test]
    fn temperature_zero_ignores_the_seed() {
        let engine = engine();
        let with = |seed| {
            let sampling = Sampling {
                temperature: 0.0,
                seed,
                ..Sampling::default()
            };
            text(&engine, &request("fire", 20, sampling))
        };
        assert_eq!(with(1), with(2));
    }

    #[test]
    fn empty_and_long_prompts_work() {
        let engine = engine();
        // Longer than the context of 32, and continued past it again.
        for prompt in [String::new(), "coal ".repeat(20)] {
            let shown = text(&engine, &request(&prompt, 50, Sampling::default()));
            assert!(
                shown.starts_with(&prompt) && shown.len() > prompt.len() + 1,
                "{shown:?}"
            );
        }
    }

    #[test]
    fn no_tokens_is_the_prompt_alone() {
        assert_eq!(
            text(&engine(), &request("fire", 0, Sampling::default())),
            "fire\n"
        );
    }

    #[test]
    fn a_stop_ends_the_text_after_the_current_token() {
        let asked = Cell::new(0);
        let stopped = || {
            asked.set(asked.get() + 1);
            asked.get() == 3
        };
        let mut output = Vec::new();
        let sampling = Sampling {
            temperature: 1.0,
            ..Sampling::default()
        };
        let request = request("a", 30, sampling);
        let speculation = Speculation::default();
        let done = generate(&engine(), &request, &speculation, &mut output, stopped).unwrap();
        assert_eq!(done.statistics.tokens, 3);
        assert!(output.ends_with(b"\n"));
    }

    #[test]
    fn any_of_several_eos_ids_ends_the_text() {
        let tiny = TinyCheckpoint::new(&tiny_config(), 5);
        let mut engine =
            Engine::open(tiny.path(), &[], device::default_name(), WeightDtype::F32).unwrap();
        let greedy = request(
            "fire",
            8,
            Sampling {
                temperature: 0.0,
                ..Sampling::default()
            },
        );
        let whole = text(&engine, &greedy);
        let end = |ids: &[u32]| Tokenizer::load(&tiny.path().join(TOKENIZER_FILE), ids).unwrap();
        let mut first = None;
        let prompt = engine.prompt("fire").unwrap();
        generate::generate(&engine.model, &prompt, 1, &[], greedy.sampling, |id| {
            first = Some(id);
            true
        });
        assert!(whole.len() > "fire\n".len());
        engine.tokenizer = end(&[256, first.unwrap()]);
        assert_eq!(text(&engine, &greedy), "fire\n");
        engine.tokenizer = end(&[256]);
        assert_eq!(text(&engine, &greedy), whole);
    }

    /// Fails after some writes.
    struct Failing {
        writes: usize,
        kind: ErrorKind,
    }

    impl Write for Failing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.writes = self.writes.checked_sub(1).ok_or(self.kind)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_closed_pipe_is_not_an_error_but_a_full_disk_is() {
        let engine = engine();
        let request = request(
            "a",
            1000,
            Sampling {
                temperature: 1.0,
                ..Sampling::default()
            },
        );
        let into = |kind| {
            let mut output = Failing { writes: 2, kind };
            let speculation = Speculation::default();
            generate(&engine, &request, &speculation, &mut output, || false)
        };
        let generated = into(ErrorKind::BrokenPipe).unwrap();
        assert!(generated.statistics.tokens < 100, "{generated:?}");
        assert!(matches!(
            into(ErrorKind::StorageFull),
            Err(InferError::Output(_))
        ));
    }
}
