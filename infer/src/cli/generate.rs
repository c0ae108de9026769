//! `cargo infer generate`.

use std::io::{self, Read};

use clap::Args;
use firebox_model::generate::Sampling;
use firebox_runtime::control::Control;

use super::{DtypeArgs, ModelArgs, at_least_one};
use crate::InferError;
use crate::generate::{Generated, Request, generate};

pub(super) const HELP: &str = "Examples:\n  \
    cargo infer generate runs/quickstart --prompt \"fn main\"\n  \
    cargo infer generate runs/quickstart --prompt \"\" --temperature 0\n  \
    cargo infer generate runs/quickstart --prompt - --max-tokens 50 < prompt.txt > output.txt\n\n\
    When prompt and generated text together exceed the model's context (context_length of the run,\n\
    max_position_embeddings in config.json), the oldest half of the context is dropped and positions begin anew,\n\
    each time it is full; a warning says so. Such text differs from that of a model that sees all of it.\n\n\
    The same seed gives the same text. Ctrl-C stops after the current token; a second Ctrl-C aborts.";

#[derive(Debug, Args)]
pub(super) struct GenerateArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    #[command(flatten)]
    weights: DtypeArgs,
    /// Text to continue; `-` reads it from standard input. An empty prompt starts a new document.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    pub(super) prompt: String,
    /// Let a prompt that spells a special token, such as <|im_start|>, contain that token.
    #[arg(long)]
    special_tokens: bool,
    /// Maximum number of tokens to generate.
    #[arg(long, value_name = "N", default_value_t = 200)]
    max_tokens: usize,
    /// Softmax temperature; 0 is greedy decoding.
    #[arg(long, value_name = "T", default_value_t = Sampling::default().temperature,
        value_parser = temperature, allow_negative_numbers = true)]
    temperature: f64,
    /// Sample from the K most probable tokens only [default: all].
    #[arg(long, value_name = "K", value_parser = at_least_one)]
    top_k: Option<usize>,
    /// Sample from the smallest set of most probable tokens whose total probability reaches P (0 < P ≤ 1).
    #[arg(long, value_name = "P", default_value_t = Sampling::default().top_p,
        value_parser = probability, allow_negative_numbers = true)]
    top_p: f64,
    /// Sampling seed.
    #[arg(long, value_name = "S", default_value_t = Sampling::default().seed, allow_negative_numbers = true)]
    seed: u64,
}

impl GenerateArgs {
    pub(super) fn execute(self, control: &Control) -> Result<(), InferError> {
        let engine = self.model.open(self.weights)?;
        let engine = engine.reading_special_tokens(self.special_tokens);
        let prompt = match self.prompt.as_str() {
            "-" => {
                let mut text = String::new();
                io::stdin()
                    .read_to_string(&mut text)
                    .map_err(InferError::Input)?;
                text
            }
            _ => self.prompt,
        };
        let sampling = Sampling {
            temperature: self.temperature,
            top_k: self.top_k.unwrap_or(0),
            top_p: self.top_p,
            seed: self.seed,
        };
        let request = Request {
            prompt,
            max_tokens: self.max_tokens,
            sampling,
        };
        control.heed_stop();
        let stopped = || control.stop_requested();
        let Generated { tokens, seconds } =
            generate(&engine, &request, &mut io::stdout().lock(), stopped)?;
        tracing::info!(
            "{tokens} {} in {seconds:.2} s ({:.0} tokens/s on {})",
            if tokens == 1 { "token" } else { "tokens" },
            tokens as f64 / seconds,
            engine.device
        );
        Ok(())
    }
}

fn temperature(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value >= 0.0 && value.is_finite() => Ok(value),
        _ => Err("must be a number of at least 0".to_owned()),
    }
}

fn probability(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value > 0.0 && value <= 1.0 => Ok(value),
        _ => Err("must be a number greater than 0 and at most 1".to_owned()),
    }
}
