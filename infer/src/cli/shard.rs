//! `cargo infer shard`, `unshard` and `verify`.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Args;
use firebox_checkpoint::sharded::{
    ShardedCheckpoint, Sharding, Summary, Verified, shard, unshard, verify,
};
use firebox_checkpoint::{Accept, checkpoint_folder, read_config};
use firebox_console::numbers::bytes;
use firebox_console::progress::Progress;
use firebox_console::terminal::print;
use firebox_runtime::control::Control;

use super::{CheckpointArgs, LayoutArgs, print_json};
use crate::InferError;
use crate::engine::warn_of_accepted;
use crate::sharded::{fault_list, table};

pub(super) const HELP: &str = "Examples:\n  \
    cargo infer shard runs/quickstart --tensor 2 --pipeline 2 --output quickstart-4\n  \
    cargo infer shard Mixtral-8x7B --tensor 8 --expert 8 --output mixtral-8     whole experts on each rank\n\n\
    Writes one subfolder per rank (rank-000 …), with its part of every tensor under the tensor's Hugging Face name, \
    layout.json with a hash of each, and the checkpoint's other files: config.json, tokenizers and whatever lies beside \
    them, but no training state (train_state.*), weights of other formats, hidden files and subfolders. \
    `cargo infer unshard` reassembles the weights and these files, byte by byte. \
    What cannot be divided is copied to every tensor rank of a stage: norms, routers, and key/value heads that are fewer \
    than the ranks. Run again, it verifies the existing folder instead of writing.";

pub(super) const UNSHARD_HELP: &str = "Example:\n  \
    cargo infer unshard quickstart-4 --output quickstart\n\n\
    Writes the files that `cargo infer shard` divided and copied, byte by byte. What it leaves out does not come back, such \
    as the training state that `cargo train run --resume` needs. Every tensor is compared with its hash; if one differs, \
    nothing is written.";

pub(super) const VERIFY_HELP: &str = "Examples:\n  \
    cargo infer verify quickstart-4                    shapes, hashes, and copies on different ranks\n  \
    cargo infer verify quickstart-4 runs/quickstart    also that weights, config.json, tokenizer … are this checkpoint's\n\n\
    Says what is wrong by rank and tensor; exit code 1 if anything is.";

#[derive(Debug, Args)]
pub(super) struct ShardArgs {
    #[command(flatten)]
    source: CheckpointArgs,
    #[command(flatten)]
    layout: LayoutArgs,
    /// Folder to write; must be empty, absent, or what this command wrote before.
    #[arg(long, value_name = "FOLDER")]
    output: PathBuf,
    /// Print a JSON object with every rank instead of a table by stages.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct UnshardArgs {
    /// Folder that `cargo infer shard` wrote.
    sharded: PathBuf,
    /// Folder to write; must be empty or absent.
    #[arg(long, value_name = "FOLDER")]
    output: PathBuf,
    /// Unknown field of config.json to ignore; may be given several times.
    #[arg(long, value_name = "FIELD")]
    accept: Vec<String>,
}

#[derive(Debug, Args)]
pub(super) struct VerifyArgs {
    /// Folder that `cargo infer shard` wrote.
    sharded: PathBuf,
    /// Checkpoint to compare it with: its folder, or a run folder for its newest checkpoint.
    checkpoint: Option<PathBuf>,
    /// Unknown field of config.json to ignore; may be given several times.
    #[arg(long, value_name = "FIELD")]
    accept: Vec<String>,
    /// Print a JSON object with every rank and fault.
    #[arg(long)]
    json: bool,
}

impl ShardArgs {
    pub(super) fn execute(self, control: &Control) -> Result<(), InferError> {
        let started = Instant::now();
        let CheckpointArgs { checkpoint, accept } = &self.source;
        let folder = checkpoint_folder(checkpoint)?;
        let (accept, layout) = (Accept::Flag(accept), self.layout.layout());
        warn_of_accepted(&folder, &read_config(&folder, accept)?.notes);
        let progress = Progress::new("dividing the checkpoint", 0);
        let sharding = shard(
            &folder,
            accept,
            layout,
            &self.output,
            reported(&progress, control),
        );
        drop(progress);
        let (summary, done) = match sharding? {
            Sharding::Written(summary) => (summary, "wrote"),
            Sharding::AlreadyThere(summary) => (summary, "found the same ranks in"),
        };
        tracing::info!(
            "{done} {}, {:.2} s",
            self.output.display(),
            started.elapsed().as_secs_f64()
        );
        show(&summary, self.json)
    }
}

impl UnshardArgs {
    pub(super) fn execute(self, control: &Control) -> Result<(), InferError> {
        let started = Instant::now();
        let accept = Accept::Flag(&self.accept);
        warn_of_accepted_by_ranks(&self.sharded, accept)?;
        let progress = Progress::new("joining the ranks", 0);
        let joined = unshard(
            &self.sharded,
            accept,
            &self.output,
            reported(&progress, control),
        );
        drop(progress);
        joined?;
        tracing::info!(
            "wrote {}, {:.2} s",
            self.output.display(),
            started.elapsed().as_secs_f64()
        );
        Ok(())
    }
}

impl VerifyArgs {
    pub(super) fn execute(self, control: &Control) -> Result<(), InferError> {
        let checkpoint = self.checkpoint.as_deref().map(checkpoint_folder);
        let checkpoint = checkpoint.transpose()?;
        let accept = Accept::Flag(&self.accept);
        let (sharded, checkpoint) = (&self.sharded, checkpoint.as_deref());
        warn_of_accepted_by_ranks(sharded, accept)?;
        let progress = Progress::new("checking the ranks", 0);
        let verified = verify(sharded, accept, checkpoint, reported(&progress, control));
        drop(progress);
        let verified = verified?;
        let Verified { summary, faults } = &verified;
        match self.json {
            true => print_json(&verified)?,
            false => {
                show(summary, false)?;
                print(&fault_list(faults)).map_err(InferError::Output)?;
            }
        }
        match faults.first() {
            None => Ok(()),
            Some(first) => Err(InferError::Faulty {
                folder: self.sharded,
                faults: faults.len(),
                first: first.to_string(),
            }),
        }
    }
}

/// Warns of the accepted fields of a sharded checkpoint's config.json.
fn warn_of_accepted_by_ranks(folder: &Path, accept: Accept) -> Result<(), InferError> {
    let opened = ShardedCheckpoint::open(folder, accept)?;
    warn_of_accepted(folder, &opened.config().notes);
    Ok(())
}

/// Shows bytes that are done, and their total, and ends the work at Ctrl-C.
fn reported(progress: &Progress, control: &Control) -> impl FnMut(u64, u64) -> ControlFlow<()> {
    control.heed_stop();
    move |done, total| {
        progress.set_total(total);
        progress.update(done, format!("of {} of weights", bytes(total.into())));
        match control.stop_requested() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }
}

fn show(summary: &Summary, json: bool) -> Result<(), InferError> {
    match json {
        true => print_json(summary),
        false => print(&table(summary).to_string()).map_err(InferError::Output),
    }
}
