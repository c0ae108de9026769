//! `cargo infer bench`.

use clap::Args;
use firebox_console::terminal::print;

use super::{DtypeArgs, ModelArgs, at_least_one, print_json};
use crate::InferError;
use crate::bench::{BenchOptions, bench};

pub(super) const HELP: &str = "Examples:\n  \
    cargo infer bench runs/quickstart\n  \
    cargo infer bench runs/quickstart --batch 8 --prompt-tokens 100 --new-tokens 20 --json";

#[derive(Debug, Args)]
pub(super) struct BenchArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    #[command(flatten)]
    weights: DtypeArgs,
    /// Length of each prompt, in tokens.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least_one)]
    prompt_tokens: usize,
    /// Number of tokens to decode after the prompt.
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = at_least_one)]
    new_tokens: usize,
    /// Number of sequences per batch.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = at_least_one)]
    batch: usize,
    /// Number of repetitions; the best time is reported.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = at_least_one)]
    repeats: usize,
    /// Print one JSON object instead of a table.
    #[arg(long)]
    json: bool,
}

impl BenchArgs {
    pub(super) fn execute(self) -> Result<(), InferError> {
        let options = BenchOptions {
            prompt: self.prompt_tokens,
            new: self.new_tokens,
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
