//! `cargo infer trace`.

use std::path::PathBuf;
use std::time::Instant;

use clap::Args;

use firebox_kernels::Precision;
use firebox_kernels::dtype::WeightDtype;

use super::{CheckpointArgs, DtypeArgs, LayoutArgs, ModelArgs, Process};
use crate::InferError;
use crate::ranks::RankOptions;
use crate::trace::{trace, trace_on_ranks};

pub(super) const HELP: &str = "Examples:\n  \
    cargo infer trace runs/quickstart --input tokens.safetensors --output trace.safetensors\n  \
    cargo infer trace OLMoE-1B-7B --input tokens.safetensors --output trace.safetensors --gradients --device wgpu\n\n\
    tokens.safetensors contains input_ids [batch, sequence] and, if there is padding, attention_mask of the \
    same shape. For a model that sees pictures it may also contain pixel_values [batch, slots, tiles, 3, side, side], \
    aspect_ratio_ids [batch, slots], aspect_ratio_mask [batch, slots, tiles] and cross_attention_mask [batch, sequence, \
    slots, tiles], as the processor of transformers makes them. tests/fixtures/compare.py compares a trace with the \
    results of transformers for the same folder.";

#[derive(Debug, Args)]
pub(super) struct TraceArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    #[command(flatten)]
    ranks: LayoutArgs,
    /// Safetensors file with input_ids and, optionally, attention_mask and pictures.
    #[arg(long, value_name = "FILE")]
    input: PathBuf,
    /// Safetensors file to write.
    #[arg(long, value_name = "FILE")]
    output: PathBuf,
    /// Also write the gradient of the total loss for every parameter; on a single rank.
    #[arg(long)]
    gradients: bool,
}

impl TraceArgs {
    pub(super) fn on_ranks(&self, process: &Process) -> RankOptions {
        let weights = DtypeArgs {
            dtype: WeightDtype::F32.into(),
            precision: Precision::F32,
        };
        self.model.on_ranks(weights, self.ranks, process)
    }

    pub(super) fn execute(self, process: &Process) -> Result<(), InferError> {
        let started = Instant::now();
        let ModelArgs { source, device } = &self.model;
        let CheckpointArgs { checkpoint, accept } = source;
        let (input, output) = (&self.input, &self.output);
        let options = self.on_ranks(process);
        let losses = match options.are_ranks() {
            true if self.gradients => {
                return Err(InferError::SingleRank {
                    flag: "--gradients",
                });
            }
            true => trace_on_ranks(options, input, output)?,
            false => {
                let gradients = self.gradients;
                trace(checkpoint, accept, device, input, output, gradients)?
            }
        };
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
