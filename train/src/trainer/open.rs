//! How a run begins: from the start, or from the newest checkpoint of its folder.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Instant;

use burn::tensor::Device;
use firebox_checkpoint::LATEST;
use firebox_console::durable::{self, FileError};
use firebox_console::numbers::scaled;
use firebox_model::accounting::Accounting;
use firebox_model::language_model::LanguageModel;
use firebox_model::parameters::ParameterInfo;
use serde::{Deserialize, Serialize};

use super::{Resume, Run, RunOptions, Since, Writer};
use crate::config::{RunConfig, load_saved};
use crate::data::{DataError, Prepared, prepare, resume};
use crate::error::TrainError;
use crate::extension;
use crate::learned::Learned;
use crate::lock::Lock;
use crate::metrics::{MetricsLog, SourceRecord, StartRecord};
use crate::optimizer::Optimizer;
use crate::ranks::{Team, checksum, checksum_of};
use crate::rows::Rows;
use crate::run_folder::{self, RunFolder};
use crate::start::{notes, starting_model, with_own_tokenizer};
use crate::state::{self, Progress};
use crate::step::TrainingState;

/// A run folder, and what a run in it begins with.
struct Beginning {
    folder: RunFolder,
    /// Of the first rank.
    lock: Option<Lock>,
    /// The step of the newest checkpoint.
    newest: Option<u64>,
    /// Steps that the run had before, if it is continued beyond them.
    fewer_steps: Option<u64>,
    prepared: Prepared,
    progress: Progress,
}

/// What all ranks of a run have to see of it.
#[derive(Debug, Serialize, Deserialize)]
struct Seen {
    newest: Option<u64>,
    fewer_steps: Option<u64>,
    data_hash: String,
    config: String,
}

impl Beginning {
    /// Opens the folder of a run, and prepares its data.
    fn new(config: &RunConfig, options: &RunOptions) -> Result<Self, TrainError> {
        let root = &options.out;
        let folder = RunFolder::create(root)?;
        let lock = Lock::acquire(root)?;
        let newest = folder.steps()?.last().copied();
        match (newest, options.resume) {
            (Some(step), Resume::Never) => {
                return Err(TrainError::RunExists {
                    folder: root.clone(),
                    step,
                });
            }
            (None, Resume::Required) => {
                return Err(TrainError::NothingToResume {
                    folder: root.clone(),
                });
            }
            (None, Resume::Auto) => {
                tracing::info!("{} has no checkpoint: starting the run", root.display());
            }
            _ => {}
        }
        let mut fewer_steps = None;
        let (prepared, progress) = match newest {
            Some(step) => {
                fewer_steps = check_config(config, &folder)?;
                let checkpoint = folder.checkpoint(step);
                let progress = state::progress(&checkpoint)?;
                let own = with_own_tokenizer(config, &checkpoint);
                let prepared = resume(&own, &progress.data_hash, true)?;
                let prepared = prepared.ok_or_else(|| TrainError::DataChanged {
                    folder: root.clone(),
                })?;
                (prepared, progress)
            }
            None => {
                let prepared = prepare(config, true)?;
                let progress = Progress {
                    data_hash: prepared.content_hash.clone(),
                    ..Progress::default()
                };
                (prepared, progress)
            }
        };
        Ok(Self {
            folder,
            lock: Some(lock),
            newest,
            fewer_steps,
            prepared,
            progress,
        })
    }

    /// What the other ranks have to see, too.
    fn seen(&self, config: &RunConfig) -> Seen {
        Seen {
            newest: self.newest,
            fewer_steps: self.fewer_steps,
            data_hash: self.progress.data_hash.clone(),
            config: text_of(config),
        }
    }

    /// On another rank: what the first one has prepared.
    fn seen_too(config: &RunConfig, options: &RunOptions, seen: Seen) -> Result<Self, TrainError> {
        let root = &options.out;
        let other = |what| TrainError::OtherRun {
            folder: root.clone(),
            what,
        };
        if text_of(config) != seen.config {
            return Err(other("configuration"));
        }
        if run_folder::newest(root)? != seen.newest {
            return Err(other("newest checkpoint"));
        }
        let folder = RunFolder::create(root)?;
        let (own, progress) = match seen.newest {
            Some(step) => {
                let checkpoint = folder.checkpoint(step);
                let progress = state::progress(&checkpoint)?;
                (with_own_tokenizer(config, &checkpoint), progress)
            }
            None => {
                let progress = Progress {
                    data_hash: seen.data_hash.clone(),
                    ..Progress::default()
                };
                (config.clone(), progress)
            }
        };
        let prepared = resume(&own, &seen.data_hash, false)?;
        Ok(Self {
            folder,
            lock: None,
            newest: seen.newest,
            fewer_steps: seen.fewer_steps,
            prepared: prepared.ok_or_else(|| other("text or data.cache"))?,
            progress,
        })
    }

    /// What this rank begins with; the first one is first.
    fn among(config: &RunConfig, options: &RunOptions, team: &Team) -> Result<Self, TrainError> {
        let mut first = None;
        let seen = team.told_by_first(|| {
            let beginning = first.insert(Self::new(config, options)?);
            Ok::<_, TrainError>(beginning.seen(config))
        })?;
        match first {
            Some(beginning) => Ok(beginning),
            None => Self::seen_too(config, options, seen),
        }
    }
}

/// A configuration as it is saved.
fn text_of(config: &RunConfig) -> String {
    config.to_toml().expect("a loaded configuration is TOML")
}

/// Compares the weights of ranks that should have the same.
fn check_same_weights(model: &LanguageModel, team: &Team) -> Result<(), TrainError> {
    if team.is_alone() {
        return Ok(());
    }
    let (layout, config) = (team.layout(), model.config());
    let parts = layout.ranks_of_copy();
    let shards: Vec<_> = (0..parts).map(|rank| layout.shard(config, rank)).collect();
    let is_everywhere = |parameter: &ParameterInfo| {
        let mut shards = shards.iter().flatten();
        shards.all(|shard| shard.slice(parameter).is_some_and(|slice| slice.is_whole()))
    };
    let parameters = LanguageModel::parameter_list(config).into_iter();
    let everywhere = parameters.filter(is_everywhere);
    let everywhere: BTreeSet<String> = everywhere.map(|parameter| parameter.path).collect();
    let own = [
        checksum(model),
        checksum_of(model, |path| everywhere.contains(path)),
    ];
    let sums = team.all(own);
    // Ranks with the same part of the model have the same weights; and all of them have what is not divided.
    let differs = (0..team.size()).find_map(|rank| {
        let twin = rank % parts;
        match (sums[rank][0] == sums[twin][0], sums[rank][1] == sums[0][1]) {
            (false, _) => Some((rank, twin)),
            (_, false) => Some((rank, 0)),
            _ => None,
        }
    });
    match differs {
        Some((rank, other)) => Err(TrainError::OtherWeights { rank, other }),
        None => Ok(()),
    }
}

impl Run {
    /// Starts the run, or continues it from its newest checkpoint.
    pub(super) fn open(
        config: &RunConfig,
        options: &RunOptions,
        team: &Team,
        device: &Device,
    ) -> Result<Self, TrainError> {
        team.doing(format_args!("preparing the data"));
        let Beginning {
            folder,
            lock,
            newest,
            fewer_steps,
            prepared,
            progress,
        } = Beginning::among(config, options, team)?;
        let root = &options.out;
        let mut config = config.clone();
        if config.train.init.is_none() {
            // Training the tokenizer may yield fewer tokens than the configuration allows.
            config.model.vocab_size = prepared.tokenizer.vocab_size();
        }
        let needed = config.sequences();
        let rows = Rows::of(&prepared, &config).map_err(|error| match error {
            DataError::TooLittle { available, .. } | DataError::TooFewRows { available, .. }
                if fewer_steps.is_some() =>
            {
                TrainError::NoTextForMoreSteps {
                    folder: root.clone(),
                    steps: config.train.steps,
                    needed,
                    available,
                }
            }
            error => error.into(),
        })?;

        team.doing(format_args!("reading the model"));
        let learned = Learned::of(&config.model, config.train.frozen);
        let optimizer = Optimizer::new(&config.model, config.optimizer.muon, learned, team);
        let (model, optimizer) = match newest {
            Some(step) => {
                let checkpoint = folder.checkpoint(step);
                let loaded = state::load(&checkpoint, &progress, &config, optimizer, device)?;
                // A crash may have happened after the checkpoint was renamed but before `latest` was written.
                if team.is_first() {
                    folder.name(LATEST, step)?;
                }
                tracing::info!("resuming after step {step} of {}", config.train.steps);
                if let Some(fewer) = fewer_steps {
                    extension::describe(&config, fewer, &folder.steps()?);
                }
                loaded
            }
            None => (starting_model(&config, team, device)?, optimizer),
        };
        check_same_weights(&model, team)?;
        let resumed = newest.map(|step| folder.checkpoint(step));
        let notes = notes(&config, resumed.as_deref(), &prepared.tokenizer)?;
        let accounting = Accounting::of(&config.model);
        let mut writer = None;
        if let Some(lock) = lock {
            let path = folder.metrics();
            let metrics = match newest {
                Some(step) => MetricsLog::resume(&path, step),
                None => MetricsLog::create(&path, start(&accounting, &prepared)),
            };
            writer = Some(Writer {
                metrics: metrics.map_err(FileError::of("write", &path))?,
                _lock: lock,
            });
            durable::write(&folder.config(), text_of(&config))?;
        }

        describe(&config, &accounting, rows.count(), needed);
        Ok(Self {
            folder,
            prepared,
            notes,
            rows,
            since: Since {
                start: Instant::now(),
                tokens: progress.tokens,
            },
            training: TrainingState::new(model, optimizer, progress, device),
            writer,
            training_flops_per_token: accounting.operations.training,
            config,
        })
    }
}

/// What a run trains, as its metrics begin.
fn start(accounting: &Accounting, prepared: &Prepared) -> StartRecord {
    let sources = prepared.sources.iter().map(|source| SourceRecord {
        name: source.name.clone(),
        tokens: source.text.tokens,
        part: source.part,
    });
    // A model that is trained fits into memory, so that its parameters fit into 64 bits.
    StartRecord {
        step: 0,
        parameters: accounting.total as u64,
        active_parameters: accounting.active as u64,
        sources: sources.collect(),
    }
}

/// The configuration that the run in a folder was started with, to be compared with another one.
///
/// # Errors
///
/// When it cannot be read.
pub(crate) fn saved_config(config: &RunConfig, root: &Path) -> Result<RunConfig, TrainError> {
    let saved = load_saved(&run_folder::config(root));
    let mut saved = saved.map_err(TrainError::SavedConfig)?;
    if saved.train.init.is_none() {
        // Saved is the trained tokenizer's size; the configuration has the maximum.
        saved.model.vocab_size = config.model.vocab_size;
    }
    Ok(saved)
}

/// Checks that a run continues with the configuration it was started with. It may have more steps; then these are the
/// steps that it had.
fn check_config(config: &RunConfig, folder: &RunFolder) -> Result<Option<u64>, TrainError> {
    let mut saved = saved_config(config, folder.root())?;
    let fewer = Some(saved.train.steps).filter(|&steps| steps < config.train.steps);
    if fewer.is_some() {
        saved.train.steps = config.train.steps;
    }
    let changes = state::differences(&saved, config);
    if changes.is_empty() {
        return Ok(fewer);
    }
    Err(TrainError::ConfigChanged {
        folder: folder.root().to_owned(),
        changes,
    })
}

/// Logs the size of the model and of the run.
fn describe(config: &RunConfig, accounting: &Accounting, available: Option<u64>, needed: u64) {
    let tokens = u128::from(needed) * config.model.context_length as u128;
    tracing::info!(
        "model: {} parameters, {} active per token",
        scaled(accounting.total as f64),
        scaled(accounting.active as f64)
    );
    let available = available.map_or("unlimited".to_owned(), |count| count.to_string());
    tracing::info!(
        "run: {} steps, {} tokens ({needed} of {available} sequences)",
        config.train.steps,
        scaled(tokens as f64)
    );
}
