//! A command on many ranks: threads of this process, or processes under MPI.
//!
//! The first rank runs the command; the others do their part of what it asks for, and print nothing.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use burn::tensor::Device;
use firebox_checkpoint::sharded::ShardedCheckpoint;
use firebox_checkpoint::{
    Accept, CheckpointConfig, checkpoint_folder, load_rank, load_shard, read_config,
};
use firebox_comm::{Comm, Options, RunError, mpi, threads};
use firebox_kernels::Precision;
use firebox_kernels::dtype::WeightDtype;
use firebox_model::language_model::LanguageModel;
use firebox_model::parallel::{RankLayout, Ranks, Shard, dismiss, serve};
use firebox_runtime::device;

use crate::InferError;
use crate::engine::check_precision;

/// How long a rank waits for another one in the middle of a step.
const DEADLINE: Duration = Duration::from_secs(300);

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
    pub dtype: WeightDtype,
    /// That of products.
    pub precision: Precision,
    /// How the ranks divide the model; of a divided checkpoint [`RankLayout::ONE`] or its own.
    pub layout: RankLayout,
    /// Threads of all ranks of this process together; `None` for one per physical core.
    pub threads: Option<usize>,
}

/// A rank's part of a checkpoint.
#[derive(Debug)]
pub struct Part {
    /// Among the ranks of its stage.
    pub model: LanguageModel,
    /// Its ties to the others.
    pub ranks: Ranks,
}

impl RankOptions {
    /// Whether the command runs on ranks: there are several, or a launcher has started this process as one.
    pub fn are_ranks(&self) -> bool {
        let is_divided = || {
            let folder = checkpoint_folder(&self.checkpoint);
            folder.is_ok_and(|folder| ShardedCheckpoint::is_one(&folder))
        };
        self.layout != RankLayout::ONE || mpi::launched() || is_divided()
    }

    /// Runs `command` on the first rank, with its part of the model, while the others do theirs. What it computes by
    /// [`Driver`](firebox_model::parallel::Driver) all ranks compute. Under MPI, the other processes return without a result.
    ///
    /// # Errors
    ///
    /// What the command returns; when the model cannot be laid out so, before any rank is started; when a rank fails.
    pub fn run<T: Send + 'static>(
        self,
        command: impl FnOnce(Part) -> Result<T, InferError> + Send + 'static,
    ) -> Result<Option<T>, InferError> {
        let command = Mutex::new(Some(command));
        self.on_every_rank(move |part| {
            let ranks = part.ranks.clone();
            if !ranks.is_first() {
                serve(&part.model, &ranks);
                return Ok(None);
            }
            let mut command = command.lock().unwrap_or_else(PoisonError::into_inner);
            let command = command.take().expect("there is one first rank");
            let result = command(part)?;
            dismiss(&ranks);
            Ok(Some(result))
        })
    }

    /// Runs `work` on every rank with its part of the model, and returns the result of the first rank, or of this process.
    ///
    /// # Errors
    ///
    /// As [`run`](Self::run).
    pub fn on_every_rank<T: Send + 'static>(
        self,
        work: impl Fn(Part) -> Result<T, InferError> + Send + Sync + 'static,
    ) -> Result<T, InferError> {
        let source = Source::open(&self)?;
        let layout = source.layout;
        check_precision(self.precision, &self.device)?;
        let threads = self.threads.unwrap_or_else(device::threads);
        let ranks = layout.ranks();
        let body = move |comm: Arc<dyn Comm>| work(self.open(comm, &source)?);
        if mpi::launched() {
            let world = mpi::World::start()?;
            if world.size() != ranks {
                return Err(InferError::Processes {
                    processes: world.size(),
                    layout,
                });
            }
            let options = options(threads);
            let report = |_: &RunError<InferError>, _: bool| ();
            return Ok(world.run(&options, body, report)?);
        }
        let mut results = threads::run(ranks, &options(threads / ranks), body)?;
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
    fn open(options: &RankOptions) -> Result<Self, InferError> {
        let folder = checkpoint_folder(&options.checkpoint)?;
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
        dtype: WeightDtype,
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

/// How ranks run that have so many threads each, at least one.
fn options(threads: usize) -> Options {
    Options {
        threads: threads.max(1),
        deadline: DEADLINE,
    }
}

impl From<RunError<InferError>> for InferError {
    fn from(RunError { failure, error }: RunError<InferError>) -> Self {
        match error {
            // What went wrong on the first rank is told as if it were the only one.
            Some(error) if failure.rank == 0 => error,
            error => Self::Rank {
                failure: Box::new(failure),
                error: error.map(Box::new),
            },
        }
    }
}
