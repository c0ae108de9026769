//! `cargo infer generate`.

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use clap::{ArgGroup, Args};
use firebox_console::numbers::bytes;
use firebox_model::generate::DraftTokens;
use firebox_model::sampling::Sampling;
use firebox_runtime::control::Control;

use super::values::{not_negative, penalty, positive, share, share_above_zero};
use super::{DtypeArgs, LayoutArgs, ModelArgs, Opener, Process, TimelineArgs, at_least_one};
use crate::InferError;
use crate::engine::Engine;
use crate::generate::{
    Answers, Draft, Generated, ManyRequest, Prompt, Request, Speculation, generate, generate_many,
    read_pictures, read_prompts,
};
use crate::ranks::RankOptions;

pub(super) const HELP: &str = "Examples:\n  \
    cargo infer generate runs/quickstart --prompt \"fn main\"\n  \
    cargo infer generate runs/quickstart --prompt \"\" --temperature 0\n  \
    cargo infer generate runs/quickstart --prompt - --max-tokens 50 < prompt.txt > output.txt\n  \
    cargo infer generate runs/quickstart --prompts prompts.jsonl --output texts.jsonl\n  \
    cargo infer generate Llama-3.2-11B-Vision --image photo.jpg --prompt \"This picture shows\"\n  \
    cargo infer generate Qwen3-4B --draft Qwen3-0.6B --prompt \"The firebox\"\n  \
    cargo infer generate runs/quickstart --prompts prompts.jsonl --tensor 2 --pipeline 2\n\n\
    A line of --prompts is a JSON object, such as {\"prompt\": \"fn main\"}. Optional are \"id\" (a string or an integer; \
    default: the line number), \"max_tokens\" and \"seed\" (defaults: the command line's). Each prompt gives one line, in\n\
    the same order: {\"id\": 1, \"text\": \"() {\", \"tokens\": 2, \"finish_reason\": \"length\", \"request\": \"5e…\"}. The text is \
    the one that --prompt gives with the same seed; finish_reason is \"stop\" after an end-of-text token and \"length\" \
    after the maximum number of tokens; request is a hash of the checkpoint's folder and the sizes and times of its \
    files, the prompt and the options, by which a continued --output knows its own lines.\n\n\
    Sampling options apply in this order: penalties, temperature, top-k, top-p, min-p. The noise of a draw depends on\n\
    the seed and the position alone, so a seed gives the same text with and without a draft, and alone or in a batch; \
    only where two tokens are nearly tied can rounding in a batch make a difference.\n\n\
    When prompt and generated text together exceed the model's context (context_length of the run, \
    max_position_embeddings in config.json), the oldest half of the context is dropped and positions begin anew, \
    each time it is full; a warning says so. Such text differs from that of a model that sees all of it.\n\n\
    Ctrl-C stops after the current token, with exit code 130; a second Ctrl-C aborts. With --prompts, the texts before \
    the first incomplete one are written.";

/// The draft that needs no model.
const PROMPT_LOOKUP: &str = "prompt-lookup";

/// The number of drafted tokens that is measured.
const AUTO: &str = "auto";

#[derive(Debug, Args)]
#[command(group(ArgGroup::new("texts").required(true).args(["prompt", "prompts"])))]
pub(super) struct GenerateArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    #[command(flatten)]
    weights: DtypeArgs,
    #[command(flatten)]
    ranks: LayoutArgs,
    /// Text to continue; `-` reads it from standard input. An empty prompt starts a new document.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(super) prompt: Option<String>,
    /// Picture that the text sees: a PNG, JPEG or WebP file; repeat it for several. They stand before the prompt, unless that
    /// has an image token for each of them (see --special-tokens).
    #[arg(
        long,
        value_name = "FILE",
        requires = "prompt",
        conflicts_with = "prompts"
    )]
    image: Vec<PathBuf>,
    /// File of prompts, one JSON object per line (see below), or `-` for standard input; many are continued at once.
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// File for the texts of --prompts, instead of standard output. Texts already in it are kept, so the same command
    /// continues an interrupted one.
    #[arg(long, value_name = "FILE", conflicts_with = "prompt")]
    output: Option<PathBuf>,
    /// Number of prompts to continue at once; more is faster and needs more memory.
    #[arg(long, value_name = "N", conflicts_with = "prompt", default_value_t = 32, value_parser = at_least_one)]
    batch: usize,
    /// Number of micro-batches in the pipeline at once: groups of prompts that take turns [default: the number of pipeline
    /// stages].
    #[arg(long, value_name = "N", conflicts_with = "prompt", value_parser = at_least_one)]
    in_flight: Option<usize>,
    /// Let a prompt that spells a special token, such as <|im_start|>, contain that token.
    #[arg(long)]
    special_tokens: bool,
    #[command(flatten)]
    timeline: TimelineArgs,
    /// Maximum number of tokens to generate.
    #[arg(long, value_name = "N", default_value_t = 200)]
    max_tokens: usize,
    #[command(flatten)]
    sampling: SamplingArgs,
    /// Source of guesses for the next tokens, which the model verifies in one step: the checkpoint of a smaller model with
    /// the same tokenizer, or prompt-lookup, which copies what followed the same tokens earlier in the text. The text
    /// stays the same.
    #[arg(long, value_name = "CHECKPOINT|prompt-lookup")]
    draft: Option<String>,
    /// Number of tokens to guess at a time; `auto` measures which number is fastest, 0 included.
    #[arg(long, value_name = "N|auto", requires = "draft", default_value = AUTO, value_parser = draft_tokens)]
    draft_tokens: DraftTokens,
}

/// How tokens are chosen.
#[derive(Debug, Clone, Copy, Args)]
struct SamplingArgs {
    /// Divide positive logits by R and multiply negative ones by it, for tokens that occur in the prompt or the generated
    /// text; above 1 discourages repetition.
    #[arg(long, value_name = "R", default_value_t = Sampling::default().repetition_penalty,
        value_parser = positive, allow_negative_numbers = true)]
    repetition_penalty: f64,
    /// Subtract P from the logits of tokens that were generated before (-2 ≤ P ≤ 2).
    #[arg(long, value_name = "P", default_value_t = Sampling::default().presence_penalty,
        value_parser = penalty, allow_negative_numbers = true)]
    presence_penalty: f64,
    /// Subtract P from the logits of tokens for each time that they were generated before (-2 ≤ P ≤ 2).
    #[arg(long, value_name = "P", default_value_t = Sampling::default().frequency_penalty,
        value_parser = penalty, allow_negative_numbers = true)]
    frequency_penalty: f64,
    /// Softmax temperature; 0 is greedy decoding.
    #[arg(long, value_name = "T", default_value_t = Sampling::default().temperature,
        value_parser = not_negative, allow_negative_numbers = true)]
    temperature: f64,
    /// Sample from the K most probable tokens only [default: all].
    #[arg(long, value_name = "K", value_parser = at_least_one)]
    top_k: Option<usize>,
    /// Sample from the smallest set of most probable tokens whose total probability reaches P (0 < P ≤ 1).
    #[arg(long, value_name = "P", default_value_t = Sampling::default().top_p,
        value_parser = share_above_zero, allow_negative_numbers = true)]
    top_p: f64,
    /// Drop tokens less probable than P times the most probable one (0 ≤ P ≤ 1).
    #[arg(long, value_name = "P", default_value_t = Sampling::default().min_p,
        value_parser = share, allow_negative_numbers = true)]
    min_p: f64,
    /// Sampling seed.
    #[arg(long, value_name = "S", default_value_t = Sampling::default().seed, allow_negative_numbers = true)]
    seed: u64,
}

impl From<SamplingArgs> for Sampling {
    fn from(args: SamplingArgs) -> Self {
        Self {
            repetition_penalty: args.repetition_penalty,
            presence_penalty: args.presence_penalty,
            frequency_penalty: args.frequency_penalty,
            temperature: args.temperature,
            top_k: args.top_k.unwrap_or(0),
            top_p: args.top_p,
            min_p: args.min_p,
            seed: args.seed,
            choice: 0,
        }
    }
}

impl GenerateArgs {
    pub(super) fn on_ranks(&self, process: &Process) -> RankOptions {
        self.model.on_ranks(self.weights, self.ranks, process)
    }

    pub(super) fn execute(self, process: &Process, control: &Control) -> Result<(), InferError> {
        // What is wrong with a file shows before a model is loaded.
        let prompts = self.prompts.as_deref().map(read_prompts).transpose()?;
        self.timeline.check()?;
        let (model, weights, ranks) = (self.model.clone(), self.weights, self.ranks);
        let control = control.clone();
        model.with_engine(weights, ranks, process, move |open| {
            self.generate(open, prompts.as_deref(), &control)
        })
    }

    fn generate(
        &self,
        open: Opener,
        prompts: Option<&[Prompt]>,
        control: &Control,
    ) -> Result<(), InferError> {
        if let Some(draft) = self
            .draft
            .as_deref()
            .filter(|draft| *draft != PROMPT_LOOKUP)
            && !self.image.is_empty()
        {
            return Err(InferError::BlindDraft {
                draft: draft.into(),
            });
        }
        let mut answers = match &self.output {
            Some(path) => Answers::file(path)?,
            None => Answers::Writer(io::stdout()),
        };
        let engine = open()?
            .reading_special_tokens(self.special_tokens)
            .with_timeline(self.timeline.timeline.clone());
        let speculation = Speculation {
            draft: match self.draft.as_deref() {
                None => Draft::None,
                Some(PROMPT_LOOKUP) => Draft::PromptLookup,
                Some(path) => {
                    let accept = &self.model.source.accept;
                    Draft::open(Path::new(path), accept, self.weights.dtype, &engine)?
                }
            },
            draft_tokens: self.draft_tokens,
        };
        let sampling = Sampling::from(self.sampling);
        let stopped = || control.stop_requested();
        let many = prompts.is_some();
        let generated = match prompts {
            Some(prompts) => {
                let request = ManyRequest {
                    max_tokens: self.max_tokens,
                    sampling,
                    batch: self.batch,
                    in_flight: self.in_flight,
                };
                control.heed_stop();
                generate_many(
                    &engine,
                    prompts,
                    &request,
                    &speculation,
                    &mut answers,
                    stopped,
                )?
            }
            None => {
                let request = Request {
                    prompt: prompt(self.prompt.clone().unwrap_or_default())?,
                    max_tokens: self.max_tokens,
                    sampling,
                    pictures: read_pictures(&engine, &self.image)?,
                };
                control.heed_stop();
                let output = &mut io::stdout().lock();
                generate(&engine, &request, &speculation, output, stopped)?
            }
        };
        log(&generated, &speculation, &engine, many);
        // Many texts that are all written were not interrupted.
        match control.stop_requested() && !many {
            true => Err(InferError::TextInterrupted {
                tokens: generated.statistics.tokens,
            }),
            false => Ok(()),
        }
    }
}

/// The prompt of the command line, or of standard input.
fn prompt(given: String) -> Result<String, InferError> {
    if given != "-" {
        return Ok(given);
    }
    let mut text = String::new();
    let read = io::stdin().read_to_string(&mut text);
    read.map(|_| text).map_err(InferError::Input)
}

fn log(generated: &Generated, speculation: &Speculation, engine: &Engine, many: bool) {
    let Generated {
        statistics,
        seconds,
    } = generated;
    let tokens = statistics.tokens;
    tracing::info!(
        "{tokens} {} in {seconds:.2} s ({:.0} tokens/s on {}){}",
        if tokens == 1 { "token" } else { "tokens" },
        tokens as f64 / seconds,
        engine.device,
        speculation.summary(statistics)
    );
    if many && statistics.cache_bytes > 0 {
        tracing::info!(
            "the cache held up to {} of keys and values; {} tokens of prompts were shared",
            bytes(statistics.cache_bytes as u128),
            statistics.shared
        );
    }
}

pub(super) fn draft_tokens(text: &str) -> Result<DraftTokens, String> {
    match text.parse() {
        Ok(tokens @ 1..=64) => Ok(DraftTokens::Fixed(tokens)),
        _ if text == AUTO => Ok(DraftTokens::Auto),
        _ => Err(format!("must be an integer from 1 to 64, or {AUTO}")),
    }
}
