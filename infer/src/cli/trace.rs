//! `cargo infer trace`.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;

use super::{CheckpointArgs, ModelArgs};
use crate::InferError;
use crate::trace::trace;

pub(super) const HELP: &str = "Examples:\n  \
    cargo infer trace runs/quickstart --input tokens.safetensors --output trace.safetensors\n  \
    cargo infer trace OLMoE-1B-7B --input tokens.safetensors --output trace.safetensors --gradients --device wgpu\n\n\
    tokens.safetensors contains input_ids [batch, sequence] and, if there is padding, attention_mask of the\n\
    same shape. tests/fixtures/compare.py compares a trace with the results of transformers for the same folder.";

#[derive(Debug, Args)]
pub(super) struct TraceArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    /// Safetensors file with input_ids and, optionally, attention_mask.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Safetensors file to write.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Also write the gradient of the total loss for every parameter.
    #[arg(long)]
    gradients: bool,
}

impl TraceArgs {
    pub(super) fn execute(self) -> Result<(), InferError> {
        let started = Instant::now();
        let ModelArgs { source, device } = &self.model;
        let CheckpointArgs { checkpoint, accept } = source;
        let losses = trace(
            checkpoint,
            accept,
            device,
            &self.input,
            &self.output,
            self.gradients,
        )?;
        tracing::info!(
            "wrote {} tensors to {}: cross-entropy {:.6}, total loss {:.6}, on {device} in {:.2} s",
            losses.tensors,
            self.output.display(),
            losses.cross_entropy,
            losses.total,
            started.elapsed().as_secs_f64()
        );
        Ok(())
    }
}
