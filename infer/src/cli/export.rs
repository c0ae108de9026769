//! `cargo infer export`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use firebox_checkpoint::BlockType;
use firebox_console::numbers::{bytes, parse_bytes};
use firebox_console::progress::Progress;

use super::CheckpointArgs;
use crate::InferError;
use crate::export::{Export, Format};

pub(super) const HELP: &str = "Examples:\n  \
    cargo infer export runs/quickstart --output quickstart-bf16 --dtype bf16\n  \
    cargo infer export Mixtral-8x7B --output resharded --shard-size 2GB\n  \
    cargo infer export runs/quickstart --gguf quickstart.gguf --dtype q8_0\n  \
    cargo infer export quickstart.gguf --output quickstart-again\n  \
    cargo infer export Llama-3.2-11B-Vision --output llama --text-only\n\n\
    --gguf writes one file for llama.cpp, Ollama and LM Studio, tokenizer included. What llama.cpp would compute otherwise, or\n\
    tokenize otherwise, is refused by name. Norms, biases and routers are stored in f32.\n\n\
    --text-only leaves out the vision tower, the layers that attend to pictures and the image token's row of the embedding.\n\
    What is left is a text model of its own family, such as Llama or Mixtral, with the same logits for texts without pictures.";

#[derive(Debug, Args)]
pub(super) struct ExportArgs {
    #[command(flatten)]
    source: CheckpointArgs,
    /// Folder to write; must be empty or absent.
    #[arg(long, value_name = "FOLDER", required_unless_present = "gguf")]
    output: Option<PathBuf>,
    /// GGUF file to write, in place of a folder; replaces a file that is there.
    #[arg(long, value_name = "FILE", conflicts_with = "output")]
    gguf: Option<PathBuf>,
    /// Type to store the weights in, of a GGUF file the matrices: f32, bf16, f16, or in a GGUF file q8_0 [default: the
    /// checkpoint's, or f32 if it has several].
    #[arg(long, visible_alias = "type", value_name = "TYPE")]
    dtype: Option<BlockType>,
    /// Maximum size of one weights file, such as 5GB or 500MiB [default: a single file].
    #[arg(long, value_name = "SIZE", value_parser = shard_size, conflicts_with = "gguf")]
    shard_size: Option<u64>,
    /// Leave out what sees pictures: write the text model alone.
    #[arg(long)]
    text_only: bool,
}

impl ExportArgs {
    pub(super) fn execute(self) -> Result<(), InferError> {
        let started = Instant::now();
        let (format, output) = self.target()?;
        let export = Export {
            format,
            text_only: self.text_only,
        };
        let progress = Progress::new("reading the checkpoint", 0);
        let CheckpointArgs { checkpoint, accept } = &self.source;
        let dtype = export.write(checkpoint, accept, output, |done, total| {
            progress.set_total(total);
            progress.update(done, format!("writing {} of weights", bytes(total.into())));
        });
        drop(progress);
        tracing::info!(
            "wrote {} in {}, {:.2} s",
            output.display(),
            dtype?,
            started.elapsed().as_secs_f64()
        );
        Ok(())
    }
}

impl ExportArgs {
    /// What is written, and where.
    fn target(&self) -> Result<(Format, &Path), InferError> {
        if let Some(file) = &self.gguf {
            return Ok((Format::Gguf { kind: self.dtype }, file));
        }
        let dtype = match self.dtype {
            None => None,
            Some(BlockType::Plain(dtype)) => Some(dtype),
            Some(kind @ BlockType::Q8) => return Err(InferError::OfGguf { kind }),
        };
        let format = Format::Folder {
            dtype,
            shard_bytes: self.shard_size,
        };
        let output = self.output.as_deref().expect("one of the two is required");
        Ok((format, output))
    }
}

fn shard_size(text: &str) -> Result<u64, String> {
    match parse_bytes(text) {
        Some(size @ 1..) => Ok(size),
        _ => Err("must be a size greater than 0, such as 5GB or 500MiB".to_owned()),
    }
}
