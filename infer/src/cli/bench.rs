//! `cargo infer bench`.

use clap::Args;
use clap::builder::ArgPredicate;
use firebox_console::durable::check_writable;
use firebox_console::terminal::print;
use firebox_runtime::control::Control;
use firebox_serve::route::Address;

use super::load::LoadArgs;
use super::serve::{EngineArgs, NO_CHECKPOINT};
use super::{DtypeArgs, ModelArgs, at_least_one, print_json};
use crate::InferError;
use crate::bench::{BenchOptions, bench};
use crate::load::{Lengths, LoadError};

pub(super) const HELP: &str = "Examples:\n  \
    cargo infer bench runs/quickstart\n  \
    cargo infer bench runs/quickstart --batch 8 --prompt-tokens 100 --new-tokens 20 --json\n  \
    cargo infer bench runs/quickstart --serve --concurrency 1,8,32 --html load.html\n  \
    cargo infer bench runs/quickstart --serve --speculate prompt --temperature 0\n  \
    cargo infer bench --serve http://127.0.0.1:8000 --rate 1,2,4,inf --requests 200 --goodput ttft:200,tpot:50\n\n\
    With --serve, clients send streamed requests to a server with OpenAI's interface, which may be another one than\n\
    Firebox's: to a running one, or to one of CHECKPOINT that this process starts on a free port and ends. They keep\n\
    so many requests under way at once (--concurrency), or send them at a rate, whether others are answered or not\n\
    (--rate). Prompts are random tokens of the server's own tokenizer, where it has /tokenize, and texts have exactly\n\
    the number of new tokens. A Firebox server is also asked what it has counted: steps, hits in the cache, accepted\n\
    drafts, and the experts that a step visits, beside those that it would visit if tokens chose them evenly.\n\n\
    Ctrl-C prints what there is, with exit code 130.";

/// What is there for servers of this process alone.
const OF_SERVER: [&str; 7] = [
    "max_sequences",
    "max_batch_tokens",
    "cache_memory",
    "block_tokens",
    "max_queue",
    "speculate",
    "speculate_tokens",
];

#[derive(Debug, Args)]
#[command(mut_arg("checkpoint", |checkpoint| checkpoint
    .required(false)
    .required_unless_present("serve")
    .default_value_if("serve", ArgPredicate::IsPresent, NO_CHECKPOINT)))]
#[command(mut_args(|argument| match OF_SERVER.contains(&argument.get_id().as_str()) {
    true => argument.requires("serve").help_heading("With CHECKPOINT and --serve"),
    false => argument,
}))]
pub(super) struct BenchArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    #[command(flatten)]
    weights: DtypeArgs,
    /// Length of each prompt, in tokens; with --serve also a range, such as 100-200.
    #[arg(long, value_name = "N", default_value = "128")]
    prompt_tokens: Lengths,
    /// Number of tokens to decode after the prompt; with --serve also a range.
    #[arg(long, value_name = "N", default_value = "64")]
    new_tokens: Lengths,
    /// Number of sequences per batch.
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "serve", value_parser = at_least_one)]
    batch: usize,
    /// Number of repetitions; the best time is reported.
    #[arg(long, value_name = "N", default_value_t = 5, conflicts_with = "serve", value_parser = at_least_one)]
    repeats: usize,
    /// Print one JSON object instead of tables.
    #[arg(long)]
    json: bool,
    /// Measure the running server at this address, such as http://127.0.0.1:8000; without an address, one of CHECKPOINT that
    /// runs meanwhile.
    #[arg(long, value_name = "URL", num_args = 0..=1, value_parser = url)]
    serve: Option<Option<Address>>,
    #[command(flatten)]
    load: LoadArgs,
    #[command(flatten)]
    engine: EngineArgs,
}

impl BenchArgs {
    /// Whether the model runs in this process.
    pub(super) fn runs_model(&self) -> bool {
        !matches!(self.serve, Some(Some(_)))
    }

    pub(super) fn execute(self, control: &Control) -> Result<(), InferError> {
        let is_given = self.model.source.checkpoint.as_os_str() != NO_CHECKPOINT;
        if let Some(address) = self.serve {
            let options = self.load.options(self.prompt_tokens, self.new_tokens)?;
            let html = self.load.html.as_deref();
            if let Some(path) = html {
                check_writable(path).map_err(InferError::Place)?;
            }
            return match (address, is_given) {
                (None, false) => Err(LoadError::Nothing.into()),
                (Some(address), true) => Err(LoadError::Both { address }.into()),
                (Some(address), false) => {
                    super::load::measure(&address, &options, html, self.json, control)
                }
                (None, true) => {
                    let served = (self.model, self.weights, self.engine);
                    super::load::measure_checkpoint(served, options, html, self.json, control)
                }
            };
        }
        let options = BenchOptions {
            prompt: only("--prompt-tokens", self.prompt_tokens)?,
            new: only("--new-tokens", self.new_tokens)?,
            batch: self.batch,
            repeats: self.repeats,
            precision: self.weights.precision,
        };
        let measured = bench(
            &self.model.source.checkpoint,
            &self.model.source.accept,
            &self.model.device,
            self.weights.dtype,
            options,
        )?;
        if self.json {
            return print_json(&measured);
        }
        print(&measured.to_string()).map_err(InferError::Output)
    }
}

/// One length, where there is no server.
fn only(option: &'static str, lengths: Lengths) -> Result<usize, LoadError> {
    let range = LoadError::Range { option, lengths };
    lengths.only().ok_or(range)
}

fn url(text: &str) -> Result<Address, String> {
    // A word alone could be a host, but is more likely a checkpoint in the wrong place.
    match text.parse::<Address>() {
        Ok(address) if text.contains(':') => Ok(address),
        Ok(_) => Err("must be like http://HOST:PORT; CHECKPOINT stands before --serve".to_owned()),
        Err(error) => Err(error.to_string()),
    }
}
