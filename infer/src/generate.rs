//! Lets a model write, and shows the text while it comes.

use std::io::{self, ErrorKind, Write};
use std::time::Instant;

use firebox_model::generate::{self, Sampler, Sampling};

use crate::InferError;
use crate::engine::Engine;

/// What to write.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// How the text begins; where it is empty, the model begins a document.
    pub prompt: String,
    /// Most tokens to add.
    pub max_tokens: usize,
    /// How they are drawn.
    pub sampling: Sampling,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Generated {
    /// Tokens that were added.
    pub tokens: usize,
    /// Seconds that it took, those to read the prompt included.
    pub seconds: f64,
}

/// Writes the prompt and its continuation to `output`: whole characters, flushed one token after the other,
/// and a line end after the last. Ends early when the model ends the text, when `stopped` says so, and when
/// nobody reads the output any more.
///
/// # Errors
///
/// When the prompt cannot be encoded, or the output fails in another way than by its reader going away.
pub fn generate(
    engine: &Engine,
    request: &Request,
    output: &mut impl Write,
    stopped: impl Fn() -> bool,
) -> Result<Generated, InferError> {
    let started = Instant::now();
    let prompt = engine.prompt(&request.prompt)?;
    let context = engine.model.config().context;
    if prompt.len() > context {
        tracing::warn!(
            "the prompt has {} tokens; the model reads the last {context}, which is its context",
            prompt.len()
        );
    }
    // The decoder has to know what stands before the first new token: some write no space at a text's start.
    let mut decoder = engine.tokenizer.stream();
    for &id in &prompt {
        decoder.push(id);
    }

    let mut tokens = 0;
    let mut written = show(output, &request.prompt);
    if written.is_ok() {
        let mut sampler = Sampler::new(request.sampling);
        let emit = |id| {
            tokens += 1;
            if let Some(text) = decoder.push(id) {
                written = show(output, &text);
            }
            written.is_ok() && !stopped()
        };
        generate::generate(
            &engine.model,
            &prompt,
            request.max_tokens,
            engine.tokenizer.stops(),
            &mut sampler,
            emit,
        );
    }
    let seconds = started.elapsed().as_secs_f64();
    let rest = decoder.finish().unwrap_or_default();
    match written.and_then(|()| show(output, &format!("{rest}\n"))) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(InferError::Output(error)),
        _ => Ok(Generated { tokens, seconds }),
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
    use firebox_text::Tokenizer;

    use super::*;
    use crate::testing::{TinyCheckpoint, tiny_config};

    fn engine() -> Engine {
        Engine::open(
            TinyCheckpoint::new(&tiny_config(), 5).path(),
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
        }
    }

    fn text(engine: &Engine, request: &Request) -> String {
        let mut output = Vec::new();
        generate(engine, request, &mut output, || false).unwrap();
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn a_seed_repeats_itself_and_another_differs() {
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
    fn an_empty_or_long_prompt_will_do() {
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
    fn a_stop_ends_the_text_after_the_token_at_hand() {
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
        let done = generate(&engine(), &request("a", 30, sampling), &mut output, stopped).unwrap();
        assert_eq!(done.tokens, 3);
        assert!(output.ends_with(b"\n"));
    }

    #[test]
    fn any_of_several_ends_ends_the_text() {
        let tiny = TinyCheckpoint::new(&tiny_config(), 5);
        let mut engine =
            Engine::open(tiny.path(), device::default_name(), WeightDtype::F32).unwrap();
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
        let mut sampler = Sampler::new(greedy.sampling);
        generate::generate(&engine.model, &prompt, 1, &[], &mut sampler, |id| {
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
    fn a_reader_that_leaves_is_no_error_and_a_full_disk_is() {
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
            generate(&engine, &request, &mut Failing { writes: 2, kind }, || {
                false
            })
        };
        let generated = into(ErrorKind::BrokenPipe).unwrap();
        assert!(generated.tokens < 100, "{generated:?}");
        assert!(matches!(
            into(ErrorKind::StorageFull),
            Err(InferError::Output(_))
        ));
    }
}
