//! A command on many ranks: threads of this process, or processes under MPI.
//!
//! The first rank runs the command; the others do their part of what it asks for, and print nothing.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use burn::tensor::Device;
use firebox_checkpoint::sharded::ShardedCheckpoint;
use firebox_checkpoint::{
    Accept, CheckpointConfig, checkpoint_place, load_rank, load_shard, read_config,
};
use firebox_comm::{Comm, RunError, threads};
use firebox_kernels::Precision;
use firebox_kernels::dtype::WeightFormat;
use firebox_model::language_model::LanguageModel;
use firebox_model::parallel::{RankLayout, Ranks, Shard, dismiss, serve};
use firebox_runtime::device;

use crate::InferError;
use crate::engine::check_precision;
use crate::processes;

/// A checkpoint, and the layout of the ranks that hold it together.
#[derive(Debug, Clone)]
pub struct RankOptions {
    /// A checkpoint folder, whole or divided among ranks, or a run folder.
    pub checkpoint: PathBuf,
    /// Fields of its config.json that are accepted although Firebox does not know them.
    pub accept: Vec<String>,
    /// A name for `--device`.
    pub device: String,
    /// The type of the weights.
    pub dtype: WeightFormat,
    /// That of products.
    pub precision: Precision,
    /// How the ranks divide the model; of a divided checkpoint [`RankLayout::ONE`] or its own.
    pub layout: RankLayout,
    /// Threads of all ranks together, where these are threads of this process; `None` for one per physical core.
    pub threads: Option<usize>,
    /// The ranks that MPI has started as processes, this one among them; `None` for threads of this process.
    pub processes: Option<Arc<dyn Comm>>,
}

/// A rank's part of a checkpoint.
#[derive(Debug)]
pub struct Part {
    /// The rank's shard of the model.
    pub model: LanguageModel,
    /// Its communicators.
    pub ranks: Ranks,
}

impl RankOptions {
    /// Whether the command runs on ranks: there are several, or the checkpoint is divided among some.
    pub fn are_ranks(&self) -> bool {
        let is_divided = || {
            let folder = checkpoint_place(&self.checkpoint);
            folder.is_ok_and(|folder| ShardedCheckpoint::is_one(&folder))
        };
        self.layout != RankLayout::ONE || self.processes.is_some() || is_divided()
    }

    /// Runs `command` on the first rank, with its part of the model, while the others do theirs. What it computes by
    /// [`Driver`](firebox_model::parallel::Driver) all ranks compute. Where ranks are processes, the first one calls this, and
    /// the others call [`serve`](Self::serve).
    ///
    /// # Errors
    ///
    /// What the command returns; when the model cannot be laid out so, before any rank reads its part; when a rank fails.
    pub fn run<T: Send + 'static>(
        self,
        command: impl FnOnce(Part) -> Result<T, InferError> + Send + 'static,
    ) -> Result<T, InferError> {
        if let Some(world) = self.processes.clone() {
            let source = Source::open(&self)?;
            let (processes, layout) = (world.size(), source.layout);
            if processes != layout.ranks() {
                return Err(InferError::Processes { processes, layout });
            }
            for other in 1..processes {
                world.send(other, &[])?;
            }
            return lead(self.open(world, &source)?, command);
        }
        let command = Mutex::new(Some(command));
        let result = self.on_every_rank(move |part| {
            if !part.ranks.is_first() {
                serve(&part.model, &part.ranks);
                return Ok(None);
            }
            let mut command = command.lock().unwrap_or_else(PoisonError::into_inner);
            let command = command.take().expect("there is one first rank");
            lead(part, command).map(Some)
        });
        Ok(result?.expect("the result of the first rank"))
    }

    /// Does this process's part of what the first one [runs](Self::run).
    ///
    /// # Errors
    ///
    /// When a rank fails, this one or another.
    ///
    /// # Panics
    ///
    /// When ranks are not processes.
    pub fn serve(self) -> Result<(), InferError> {
        let world = self.processes.clone().expect("ranks are processes");
        // What is wrong with the command or the checkpoint, the first rank has said by then.
        world.wait(0)?;
        let part = self.open(world, &Source::open(&self)?)?;
        serve(&part.model, &part.ranks);
        Ok(())
    }

    /// Runs `work` on every rank with its part of the model, each a thread of this process, and returns the result of the first.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn on_every_rank<T: Send + 'static>(
        self,
        work: impl Fn(Part) -> Result<T, InferError> + Send + Sync + 'static,
    ) -> Result<T, InferError> {
        let source = Source::open(&self)?;
        let ranks = source.layout.ranks();
        let threads = self.threads.unwrap_or_else(device::threads);
        let options = processes::options(threads / ranks);
        let body = move |comm: Arc<dyn Comm>| work(self.open(comm, &source)?);
        let mut results = threads::run(ranks, &options, body)?;
        Ok(results.swap_remove(0))
    }

    /// This rank's part.
    fn open(&self, comm: Arc<dyn Comm>, source: &Source) -> Result<Part, InferError> {
        let folder = &source.folder;
        comm.doing(format_args!("reading its part of {}", folder.display()));
        let ranks = Ranks::new(comm, source.layout)?;
        let device = device::select(&self.device)?;
        let model = source.part(ranks.world().rank(), &device, self.dtype)?;
        let model = model.at_precision(self.precision);
        // Reading may take longer than any step.
        for other in 1..ranks.world().size() {
            match ranks.is_first() {
                true => drop(ranks.world().wait(other)?),
                false if ranks.world().rank() == other => ranks.world().send(0, &[])?,
                false => {}
            }
        }
        ranks.world().doing(format_args!("computing"));
        Ok(Part {
            model: model.among(ranks.tensor().clone()),
            ranks,
        })
    }
}

/// Where the weights are.
#[derive(Debug)]
struct Source {
    folder: PathBuf,
    config: CheckpointConfig,
    layout: RankLayout,
    /// If each rank has a folder of its own.
    divided: Option<ShardedCheckpoint>,
}

impl Source {
    /// Finds the checkpoint, and checks that it and the device allow what the options ask for.
    fn open(options: &RankOptions) -> Result<Self, InferError> {
        check_precision(options.precision, &options.device)?;
        let folder = checkpoint_place(&options.checkpoint)?;
        let accept = Accept::Flag(&options.accept);
        let divided = match ShardedCheckpoint::is_one(&folder) {
            true => Some(ShardedCheckpoint::open(&folder, accept)?),
            false => None,
        };
        let (config, layout) = match &divided {
            Some(divided) => (divided.config().clone(), divided.layout()),
            None => (read_config(&folder, accept)?, options.layout),
        };
        layout.check(&config.model)?;
        if options.layout != layout && options.layout != RankLayout::ONE {
            return Err(InferError::Divided { folder, layout });
        }
        Ok(Self {
            folder,
            config,
            layout,
            divided,
        })
    }

    /// A rank's part of the model.
    fn part(
        &self,
        rank: usize,
        device: &Device,
        dtype: WeightFormat,
    ) -> Result<LanguageModel, InferError> {
        Ok(match &self.divided {
            Some(divided) => load_rank(divided, rank, device, dtype)?,
            None => {
                let shard = Shard::new(&self.config.model, self.layout, rank)?;
                load_shard(&self.folder, &self.config, device, dtype, &shard)?
            }
        })
    }
}

/// Runs a command on the first rank, and then lets the others go.
fn lead<T>(
    part: Part,
    command: impl FnOnce(Part) -> Result<T, InferError>,
) -> Result<T, InferError> {
    let ranks = part.ranks.clone();
    let result = command(part)?;
    dismiss(&ranks);
    Ok(result)
}

impl From<RunError<InferError>> for InferError {
    fn from(RunError { failure, error }: RunError<InferError>) -> Self {
        match error {
            // What went wrong on the first rank is told as if it were the only one.
            Some(error) if failure.rank == 0 => error,
            _ => Self::Rank(Box::new(failure)),
        }
    }
}
