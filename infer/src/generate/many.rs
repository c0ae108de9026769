//! Many prompts at once.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::{ErrorKind, Write};
use std::path::Path;
use std::time::{Instant, SystemTime};

use firebox_console::numbers::hexadecimal;
use firebox_console::progress::Progress;
use firebox_model::generate::{self, End, Ended, Receiver, Token};
use firebox_model::sampling::Sampling;
use sha2::{Digest, Sha256};

use super::{Answer, Answers, FinishReason, Generated, Prompt, Speculation};
use crate::InferError;
use crate::engine::{Engine, warn_of_special_places};

/// How prompts are continued.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ManyRequest {
    /// Maximum number of tokens to generate for a prompt that does not say its own.
    pub max_tokens: usize,
    /// How tokens are sampled; prompts may have seeds of their own.
    pub sampling: Sampling,
    /// The most prompts at once.
    pub batch: usize,
    /// In how many groups they take turns, so that as many steps are under way at once; `None` for one for each pipeline
    /// stage.
    pub in_flight: Option<usize>,
}

/// Continues prompts, up to a number of them at once, and writes the texts in the order of the prompts. Prompts that are
/// answered already are passed over. Logs warnings of prompts and texts that exceed the model's context.
///
/// # Errors
///
/// When a prompt cannot be encoded, before anything is generated; when `stopped` returns true; or when the output fails.
pub fn generate_many<W: Write>(
    engine: &Engine,
    prompts: &[Prompt],
    request: &ManyRequest,
    speculation: &Speculation,
    answers: &mut Answers<W>,
    stopped: impl Fn() -> bool,
) -> Result<Generated, InferError> {
    let model = model(engine);
    let (mut open, mut digests): (Vec<&Prompt>, Vec<String>) = Default::default();
    for prompt in prompts {
        let digest = digest(&model, engine, prompt, request);
        if !answers.has(&prompt.id, &digest)? {
            open.push(prompt);
            digests.push(digest);
        }
    }
    let done = prompts.len() - open.len();
    if done > 0 {
        tracing::info!("{done} of {} prompts are answered already", prompts.len());
    }
    let requests = requests(engine, &open, request)?;
    let started = Instant::now();
    let progress = Progress::new("generating", prompts.len() as u64).starting_at(done as u64);
    let halted = Cell::new(false);
    let mut many = Many {
        engine,
        prompts: &open,
        digests: &digests,
        requests: &requests,
        begun: BTreeMap::new(),
        waiting: BTreeMap::new(),
        written: 0,
        tokens: 0,
        cut: 0,
        answers,
        result: Ok(()),
        halted: &halted,
        stopped: &stopped,
        progress: &progress,
        started,
    };
    let network = &mut *engine.network();
    let in_flight = request.in_flight.unwrap_or_else(|| network.stages());
    let statistics = generate::generate_all(
        network,
        // No text begins after the end.
        requests
            .iter()
            .take_while(|_| !halted.get() && !stopped())
            .cloned(),
        &speculation.options(
            engine.tokenizer.eos_ids(),
            request.batch.min(requests.len()).max(1),
            in_flight,
        ),
        &mut many,
    );
    let timeline = engine.finish(network);
    let Many {
        written,
        cut,
        result,
        ..
    } = many;
    drop(progress);
    if cut > 0 {
        let context = engine.model.config().context_length;
        tracing::warn!(
            "{cut} text(s) exceeded the model's context of {context} tokens: their oldest half was dropped whenever the \
             context was full, and positions began anew"
        );
    }
    let generated = Generated {
        statistics,
        seconds: started.elapsed().as_secs_f64(),
    };
    match result {
        // The reader has seen enough.
        Err(InferError::Output(error)) if error.kind() == ErrorKind::BrokenPipe => Ok(generated),
        Err(error) => Err(error),
        Ok(()) => {
            answers.finish()?;
            timeline?;
            match written == open.len() {
                true => Ok(generated),
                false => Err(InferError::Interrupted {
                    answered: done + written,
                    prompts: prompts.len(),
                    to_file: matches!(answers, Answers::File(_)),
                }),
            }
        }
    }
}

impl ManyRequest {
    /// Maximum number of tokens to generate after a prompt.
    fn count(&self, prompt: &Prompt) -> usize {
        prompt.max_tokens.unwrap_or(self.max_tokens)
    }

    /// How tokens are sampled after a prompt.
    fn sampling(&self, prompt: &Prompt) -> Sampling {
        Sampling {
            seed: prompt.seed.unwrap_or(self.sampling.seed),
            ..self.sampling
        }
    }
}

/// What computes the texts: a model, which is known by its folder and by size and time of its files with weights, and how
/// these are computed with.
fn model(engine: &Engine) -> String {
    let folder = &engine.folder;
    let folder = folder.canonicalize().unwrap_or_else(|_| folder.clone());
    let computed = (
        &engine.device,
        engine.dtype.to_string(),
        engine.model.precision(),
    );
    format!("{:?}", (written(&folder), folder, computed))
}

/// A hash of what the text after a prompt depends on, in 16 hexadecimal digits.
fn digest(model: &str, engine: &Engine, prompt: &Prompt, request: &ManyRequest) -> String {
    let what = (
        model,
        engine.tokenizer.takes_special_tokens(),
        &prompt.prompt,
        request.count(prompt),
        request.sampling(prompt),
    );
    let digest = Sha256::digest(format!("{what:?}"));
    hexadecimal(&digest[..8])
}

/// Size and time of each file with weights.
fn written(folder: &Path) -> Vec<(OsString, u64, Option<SystemTime>)> {
    let about = |path: &Path| {
        let about = path.metadata().ok()?;
        let name = path.file_name().unwrap_or_default().to_owned();
        Some((name, about.len(), about.modified().ok()))
    };
    if folder.is_file() {
        return about(folder).into_iter().collect();
    }
    let files = folder.read_dir().into_iter().flatten().flatten();
    let files = files.map(|file| file.path());
    let weights = files.filter(|file| file.extension().is_some_and(|e| e == "safetensors"));
    let mut found: Vec<_> = weights.filter_map(|file| about(&file)).collect();
    found.sort();
    found
}

/// The token ids of prompts, and how they are to be continued.
fn requests(
    engine: &Engine,
    prompts: &[&Prompt],
    request: &ManyRequest,
) -> Result<Vec<generate::Request>, InferError> {
    let context = engine.model.config().context_length;
    let special = prompts
        .iter()
        .map(|prompt| engine.tokenizer.special_places(&prompt.prompt));
    warn_of_special_places(&engine.tokenizer, special.sum());
    let encoded = prompts.iter().map(|prompt| {
        let ids = engine.tokenizer.prompt(&prompt.prompt);
        let ids = ids.map_err(InferError::from);
        let ids = ids.and_then(|ids| engine.check(&ids).map(|()| ids));
        let ids = ids.map_err(|error| InferError::Prompt {
            id: serde_json::json!(prompt.id).to_string(),
            error: Box::new(error),
        })?;
        Ok(generate::Request::new(
            ids,
            request.count(prompt),
            request.sampling(prompt),
        ))
    });
    let requests = encoded.collect::<Result<Vec<_>, InferError>>()?;
    let long = requests
        .iter()
        .filter(|request| request.prompt.len() > context)
        .count();
    if long > 0 {
        tracing::warn!(
            "{long} prompt(s) have more tokens than the model's context; only their last {context} are used"
        );
    }
    Ok(requests)
}

/// Takes texts as they come, and writes them in the order of their prompts.
struct Many<'a, W, S> {
    engine: &'a Engine,
    prompts: &'a [&'a Prompt],
    /// Of each prompt.
    digests: &'a [String],
    requests: &'a [generate::Request],
    /// Tokens of the texts that have not ended.
    begun: BTreeMap<usize, Vec<u32>>,
    /// Texts that ended before an earlier one.
    waiting: BTreeMap<usize, Answer>,
    written: usize,
    /// Tokens of all texts.
    tokens: usize,
    /// Texts that exceeded the context.
    cut: usize,
    answers: &'a mut Answers<W>,
    result: Result<(), InferError>,
    /// Whether nothing more is wanted, since the output failed.
    halted: &'a Cell<bool>,
    stopped: &'a S,
    progress: &'a Progress,
    started: Instant,
}

impl<W: Write, S: Fn() -> bool> Receiver for Many<'_, W, S> {
    fn token(&mut self, text: usize, token: Token) -> bool {
        self.begun.entry(text).or_default().push(token.id);
        self.tokens += 1;
        !self.halted.get() && !(self.stopped)()
    }

    fn ended(&mut self, text: usize, ended: Ended) {
        let tokens = self.begun.remove(&text).unwrap_or_default();
        let finish_reason = match ended.end {
            End::Eos => FinishReason::Stop,
            End::Count => FinishReason::Length,
            End::Stopped => return,
        };
        self.cut += usize::from(ended.cut.is_some());
        let answer = Answer {
            id: self.prompts[text].id.clone(),
            text: self.text(&self.requests[text].prompt, &tokens),
            tokens: tokens.len(),
            finish_reason,
            request: self.digests[text].clone(),
        };
        self.waiting.insert(text, answer);
        while let Some(answer) = self.waiting.remove(&self.written) {
            if self.result.is_ok() {
                self.result = self.answers.write(&answer);
                self.halted.set(self.result.is_err());
            }
            self.written += 1;
        }
        let speed = self.tokens as f64 / self.started.elapsed().as_secs_f64();
        self.progress
            .tell(format!("generating, {speed:.0} tokens/s"));
        self.progress.advance(1);
    }
}

impl<W, S> Many<'_, W, S> {
    /// The text of tokens that follow a prompt. Some decoders need the tokens before the first one: they drop a space at
    /// the start of a text.
    fn text(&self, prompt: &[u32], tokens: &[u32]) -> String {
        let mut decoder = self.engine.tokenizer.stream().after(prompt);
        let mut text: String = tokens.iter().filter_map(|&id| decoder.push(id)).collect();
        text.push_str(&decoder.finish().unwrap_or_default());
        text
    }
}

#[cfg(test)]
mod tests {
    use firebox_console::advice::Advise as _;
    use firebox_kernels::dtype::WeightDtype;
    use firebox_model::generate::DraftTokens;
    use firebox_runtime::device;

    use super::*;
    use crate::generate::{Draft, Id, Request, generate};
    use crate::testing::{TinyCheckpoint, tiny_config};

    fn engine() -> Engine {
        let tiny = TinyCheckpoint::new(&tiny_config(), 5);
        Engine::open(tiny.path(), &[], device::default_name(), WeightDtype::F32).unwrap()
    }

    /// Of several lengths, some of which exceed the context of 32 with what follows.
    fn prompts() -> Vec<Prompt> {
        let texts = [
            "fire",
            "",
            "für",
            "a longer one, of thirty bytes",
            "b",
            "coal, ash",
        ];
        let prompt = |(number, text): (usize, &&str)| Prompt {
            id: Id::Number(number as i64),
            prompt: (*text).to_owned(),
            max_tokens: (number == 2).then_some(3),
            seed: (number > 3).then_some(number as u64),
        };
        texts.iter().enumerate().map(prompt).collect()
    }

    fn request(batch: usize, temperature: f64) -> ManyRequest {
        ManyRequest {
            max_tokens: 20,
            sampling: Sampling {
                temperature,
                seed: 9,
                ..Sampling::default()
            },
            batch,
            in_flight: None,
        }
    }

    fn lines(engine: &Engine, request: &ManyRequest, speculation: &Speculation) -> Vec<String> {
        let mut answers = Answers::Writer(Vec::new());
        let never = || false;
        generate_many(
            engine,
            &prompts(),
            request,
            speculation,
            &mut answers,
            never,
        )
        .unwrap();
        let Answers::Writer(written) = answers else {
            unreachable!("as it was made");
        };
        let text = String::from_utf8(written).unwrap();
        text.lines().map(str::to_owned).collect()
    }

    #[test]
    fn texts_are_those_of_one_prompt_after_the_other_in_their_order() {
        let engine = engine();
        for temperature in [0.0, 1.0] {
            let many = request(4, temperature);
            let alone: Vec<String> = (prompts().into_iter())
                .map(|prompt| {
                    let one = Request {
                        prompt: prompt.prompt.clone(),
                        max_tokens: prompt.max_tokens.unwrap_or(many.max_tokens),
                        sampling: Sampling {
                            seed: prompt.seed.unwrap_or(many.sampling.seed),
                            ..many.sampling
                        },
                        pictures: Vec::new(),
                    };
                    let mut output = Vec::new();
                    let plain = Speculation::default();
                    generate(&engine, &one, &plain, &mut output, || false).unwrap();
                    let text = String::from_utf8(output).unwrap();
                    let text = text.strip_prefix(&prompt.prompt).unwrap();
                    text.strip_suffix('\n').unwrap().to_owned()
                })
                .collect();
            for speculation in [
                Speculation::default(),
                Speculation {
                    draft: Draft::PromptLookup,
                    draft_tokens: DraftTokens::Fixed(3),
                },
            ] {
                let found = lines(&engine, &many, &speculation);
                assert_eq!(found.len(), alone.len());
                for (number, (line, alone)) in found.iter().zip(&alone).enumerate() {
                    let line: serde_json::Value = serde_json::from_str(line).unwrap();
                    assert_eq!(line["id"], number);
                    assert_eq!(line["text"], alone[..]);
                    let reason = line["finish_reason"].as_str().unwrap();
                    assert!(["stop", "length"].contains(&reason));
                }
            }
        }
    }

    #[test]
    fn an_interrupted_file_continues() {
        let engine = engine();
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("texts.jsonl");
        let plain = Speculation::default();
        let many = request(2, 1.0);
        let asked = Cell::new(0);
        let stopped = || {
            asked.set(asked.get() + 1);
            asked.get() > 60
        };
        let mut answers = Answers::<Vec<u8>>::file(&path).unwrap();
        let error = generate_many(&engine, &prompts(), &many, &plain, &mut answers, stopped);
        let error = error.unwrap_err();
        assert_eq!(error.exit_code(), 130);
        drop(answers);
        let begun = std::fs::read_to_string(&path).unwrap();
        let answered = begun.lines().count();
        assert!((1..prompts().len()).contains(&answered), "{begun}");
        assert!(
            error
                .to_string()
                .contains(&format!("{answered} of 6 prompts")),
            "{error}"
        );

        let mut answers = Answers::<Vec<u8>>::file(&path).unwrap();
        generate_many(&engine, &prompts(), &many, &plain, &mut answers, || false).unwrap();
        drop(answers);
        let whole = std::fs::read_to_string(&path).unwrap();
        assert!(whole.starts_with(&begun));
        assert_eq!(
            whole.lines().collect::<Vec<_>>(),
            lines(&engine, &many, &plain)
        );
        // Nothing is left to do.
        let done = generate_many(
            &engine,
            &prompts(),
            &many,
            &plain,
            &mut answers_of(&path),
            || false,
        );
        assert_eq!(done.unwrap().statistics.tokens, 0);
    }

    fn answers_of(path: &std::path::Path) -> Answers<Vec<u8>> {
        Answers::file(path).unwrap()
    }

    #[test]
    fn a_draft_has_the_vocabulary_of_the_model() {
        let engine = engine();
        let open = |config: &_| {
            let tiny = TinyCheckpoint::new(config, 6);
            Draft::open(tiny.path(), &[], WeightDtype::F32, &engine)
        };
        assert!(matches!(open(&tiny_config()).unwrap(), Draft::Model(_)));
        let mut config = tiny_config();
        config.vocab_size = 300;
        let error = open(&config).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        let words = "it has a vocabulary of 300 tokens, the model one of 257";
        assert!(error.to_string().contains(words), "{error}");
        // The same size, with two tokens exchanged.
        let tiny = TinyCheckpoint::new(&tiny_config(), 6);
        let path = tiny.path().join(firebox_text::TOKENIZER_FILE);
        let json = std::fs::read_to_string(&path).unwrap();
        let mut json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let ids = json["model"]["vocab"].as_object_mut().unwrap();
        (ids["a"], ids["b"]) = (98.into(), 97.into());
        std::fs::write(&path, json.to_string()).unwrap();
        let error = Draft::open(tiny.path(), &[], WeightDtype::F32, &engine).unwrap_err();
        let words = "id 97 is \"b\" in its tokenizer, and \"a\" in the model's";
        assert!(error.to_string().contains(words), "{error}");
    }
}
