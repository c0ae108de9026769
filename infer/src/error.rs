//! The errors of `cargo infer`, their hints and exit codes.

use std::io;
use std::path::PathBuf;

use firebox_checkpoint::{BlockType, CheckpointError, FolderError};
use firebox_comm::mpi::ProgramError;
use firebox_comm::{CommError, Failure};
use firebox_console::advice::{Advice, Advise};
use firebox_console::durable::FileError;
use firebox_console::numbers::{bytes, counted};
use firebox_image::{PictureError, ProcessorError};
use firebox_kernels::Precision;
use firebox_model::parallel::{LayoutError, RankLayout};
use firebox_runtime::device::DeviceError;
use firebox_runtime::failure::DeviceFailure;
use firebox_text::TokenizerError;
use firebox_text::packing::PackingError;

use crate::compare::LayoutName;
use crate::devices;
use crate::load::LoadError;
use crate::plan::PlanError;
use crate::tasks::TaskError;

/// Why a command failed.
#[derive(Debug, thiserror::Error)]
pub enum InferError {
    /// The device cannot be used.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The device has no products of this precision.
    #[error(
        "--precision {precision}: the device {device} does not compute products in {precision}"
    )]
    Precision {
        /// The precision.
        precision: Precision,
        /// The device's name.
        device: String,
    },
    /// A folder has no weights of this type.
    #[error("--dtype {kind}: a folder has weights in f32, bf16 or f16")]
    OfGguf {
        /// The type.
        kind: BlockType,
    },
    /// A given path does not exist.
    #[error("{option}: {} does not exist", path.display())]
    Missing {
        /// The option that names it, `--data` or `--image-folder`.
        option: &'static str,
        /// The path.
        path: PathBuf,
    },
    /// A path does not lead to a checkpoint.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// A file where a folder is required.
    #[error("--image-folder: {} is not a folder", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// A folder where a text file is required.
    #[error("{} is a folder; --data takes files", path.display())]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// The checkpoint cannot be read.
    #[error(transparent)]
    Checkpoint(Box<CheckpointError>),
    /// The checkpoint has no tokenizer.
    #[error("{} has no tokenizer.json, so text cannot be tokenized", folder.display())]
    NoTokenizer {
        /// The checkpoint.
        folder: PathBuf,
    },
    /// The tokenizer cannot be read or used.
    #[error(transparent)]
    Tokenizer(#[from] TokenizerError),
    /// The tokenizer produced an id beyond the model's vocabulary.
    #[error(
        "token id {id} is not in the model's vocabulary: tokenizer.json has {tokenizer} ids, config.json {model}"
    )]
    Vocabulary {
        /// The id.
        id: u32,
        /// Ids of the tokenizer.
        tokenizer: usize,
        /// Ids of the model.
        model: usize,
    },
    /// `--field` without JSON lines.
    #[error("--field {field} has no effect: no file of --data is read as JSON lines")]
    FieldUnused {
        /// The given field.
        field: String,
    },
    /// The text cannot be read or encoded, or is empty.
    #[error(transparent)]
    Text(#[from] PackingError),
    /// The tasks cannot be read.
    #[error(transparent)]
    Tasks(#[from] TaskError),
    /// The input file of a trace is not valid.
    #[error("{}: {reason}", file.display())]
    TraceInput {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A line of a file of prompts is not a prompt.
    #[error("{}:{line}: {reason}", file.display())]
    PromptLine {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A file of prompts is empty.
    #[error("{} has no prompts", file.display())]
    NoPrompts {
        /// The file.
        file: PathBuf,
    },
    /// The prompt of a line cannot be used.
    #[error("the prompt of id {id}: {error}")]
    Prompt {
        /// Its name.
        id: String,
        /// The reason.
        error: Box<InferError>,
    },
    /// `--output` names a folder or a device.
    #[error("{} is not a regular file", file.display())]
    OutputNotAFile {
        /// The path.
        file: PathBuf,
    },
    /// The output of `trace` would take the place of what it reads.
    #[error("--output {} {reason}", file.display())]
    TraceOutput {
        /// The path.
        file: PathBuf,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// Two processes write to one output file of `generate --prompts`.
    #[error("{} is being written by another process", file.display())]
    OutputInUse {
        /// The file.
        file: PathBuf,
    },
    /// The output file of `generate --prompts` has a line that is not its own.
    #[error("{}:{line} is not an answer of this command, so nothing is added to the file: {reason}", file.display())]
    AnswerLine {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong.
        reason: String,
    },
    /// A draft model does not fit the model.
    #[error("{} cannot draft for this model: {reason}", draft.display())]
    Draft {
        /// The draft.
        draft: PathBuf,
        /// What differs.
        reason: String,
    },
    /// Ctrl-C ended `generate --prompts`.
    #[error("interrupted after {answered} of {prompts} prompts")]
    Interrupted {
        /// Prompts whose texts are written.
        answered: usize,
        /// All prompts.
        prompts: usize,
        /// Whether the texts are in a file.
        to_file: bool,
    },
    /// Ctrl-C ended `generate --prompt`.
    #[error("interrupted after {tokens} tokens")]
    TextInterrupted {
        /// Number of generated tokens.
        tokens: usize,
    },
    /// A file that the command line names cannot be read.
    #[error(transparent)]
    Read(FileError),
    /// A file or folder cannot be written.
    #[error(transparent)]
    Write(#[from] FileError),
    /// A file that the command line names could not be written at the end.
    #[error(transparent)]
    Place(FileError),
    /// `--context` exceeds the model's context.
    #[error("--context {context} exceeds the model's context of {largest} tokens")]
    Context {
        /// The requested sequence length, in tokens.
        context: usize,
        /// The model's context, in tokens.
        largest: usize,
    },
    /// Prompt plus new tokens exceed the context length.
    #[error(
        "prompt and new tokens together are {tokens} tokens, which exceeds the model's context of {largest}"
    )]
    BenchTooLong {
        /// Prompt plus new tokens.
        tokens: usize,
        /// The model's context, in tokens.
        largest: usize,
    },
    /// A server was not measured.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// Nothing can be planned.
    #[error(transparent)]
    Plan(#[from] PlanError),
    /// A sharded checkpoint is not what it should be.
    #[error("{} has {}; the first one: {first}", folder.display(), counted(*faults as u128, "fault"))]
    Faulty {
        /// The folder.
        folder: PathBuf,
        /// How many things are wrong.
        faults: usize,
        /// The first of them.
        first: String,
    },
    /// The device failed.
    #[error(transparent)]
    Computation(#[from] DeviceFailure),
    /// The loss is infinite or NaN.
    #[error("the loss on {device} is not finite ({nats})")]
    NotFinite {
        /// The device's name.
        device: String,
        /// The mean loss in nats per token.
        nats: f64,
    },
    /// A device of a comparison failed.
    #[error("{name} failed: {reason}")]
    DeviceFailed {
        /// The device, the type of its weights and the layout of its ranks.
        name: String,
        /// The reason, in one sentence.
        reason: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// A device of a comparison differs by more than its tolerance.
    #[error("{name} differs from {reference} in {fault}{}", and_more(*more))]
    Differs {
        /// The device, the type of its weights and the layout of its ranks.
        name: String,
        /// The same of the reference.
        reference: String,
        /// The first fault: where, by how much, and the tolerance.
        fault: String,
        /// Number of further faults, over all devices.
        more: usize,
    },
    /// A worker process cannot be started or read.
    #[error("cannot run a worker process: {0}")]
    Process(io::Error),
    /// The ranks cannot hold the model so.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// There are more or fewer processes than ranks.
    #[error("MPI has started {processes} processes, but {layout} are {} ranks", layout.ranks())]
    Processes {
        /// Processes that were started.
        processes: usize,
        /// How ranks divide the model.
        layout: RankLayout,
    },
    /// A checkpoint that is divided among other ranks.
    #[error("{} is divided among {layout}", folder.display())]
    Divided {
        /// The folder.
        folder: PathBuf,
        /// How it is divided.
        layout: RankLayout,
    },
    /// A comparison of a checkpoint that is divided among ranks, in another layout.
    #[error("{} is divided among {layout}, and is compared in this layout alone", folder.display())]
    DividedComparison {
        /// The folder.
        folder: PathBuf,
        /// How it is divided.
        layout: RankLayout,
    },
    /// What needs the whole model on one rank.
    #[error("{flag} works only on a single rank")]
    SingleRank {
        /// The option that asks for it.
        flag: &'static str,
    },
    /// `--text-only` of a model of text alone.
    #[error("--text-only: {} sees no pictures", folder.display())]
    TextAlready {
        /// The checkpoint.
        folder: PathBuf,
    },
    /// Pictures for a model of text alone.
    #[error("{flag}: {} sees no pictures", folder.display())]
    Blind {
        /// The option.
        flag: &'static str,
        /// The checkpoint.
        folder: PathBuf,
    },
    /// A line with a picture and its caption cannot be used.
    #[error("{place}: {error}")]
    Pair {
        /// The file and its line.
        place: String,
        /// The reason.
        error: Box<InferError>,
    },
    /// A caption with its picture that exceeds the context.
    #[error(
        "the caption has {tokens} tokens with its picture, more than the model's context of {context}"
    )]
    LongCaption {
        /// Tokens of the caption and its picture.
        tokens: usize,
        /// The context.
        context: usize,
    },
    /// Files without a pair that can be used.
    #[error("there are no pictures with captions in {}{}", paths(files), without(*left_out))]
    NoPairs {
        /// The files.
        files: Vec<PathBuf>,
        /// Pairs that were left out.
        left_out: u64,
    },
    /// A file is no picture that Firebox reads.
    #[error(transparent)]
    Picture(#[from] PictureError),
    /// What the checkpoint says of its pictures is not what Firebox computes.
    #[error(transparent)]
    Processor(#[from] ProcessorError),
    /// A picture of tiles that the model does not know.
    #[error(
        "{}: the picture needs {rows} x {columns} tiles, which are not among the model's supported_aspect_ratios",
        file.display()
    )]
    Arrangement {
        /// The picture.
        file: PathBuf,
        /// Rows of tiles.
        rows: usize,
        /// Columns of tiles.
        columns: usize,
    },
    /// Image tokens of a prompt that stand for no picture, or pictures that none stands for.
    #[error("the prompt has {}, and there are {}", counted(*tokens as u128, "image token"), counted(*pictures as u128, "picture"))]
    ImageTokens {
        /// Image tokens.
        tokens: usize,
        /// Pictures.
        pictures: usize,
    },
    /// A prompt with pictures that exceeds the context.
    #[error(
        "the prompt and its pictures have {tokens} tokens, more than the model's context of {context}"
    )]
    LongPrompt {
        /// Tokens of the prompt.
        tokens: usize,
        /// The context.
        context: usize,
    },
    /// A draft model for a text that sees pictures.
    #[error("--draft {}: a draft model sees no pictures", draft.display())]
    BlindDraft {
        /// The draft.
        draft: PathBuf,
    },
    /// A rank failed. What went wrong on the first one is told as if it were the only one.
    #[error("{}", .0.told())]
    Rank(Box<Failure>),
    /// MPI cannot be used, or a rank has failed and been reported.
    #[error(transparent)]
    Program(#[from] ProgramError),
    /// Another process has printed what is wrong.
    #[error("another process has failed")]
    Reported {
        /// Its exit code.
        exit_code: u8,
    },
    /// A command that takes one process is started as several.
    #[error("MPI has started {processes} processes, and this command runs in one")]
    SingleProcess {
        /// Processes that were started.
        processes: usize,
    },
    /// A message between ranks failed, since one of them has.
    #[error(transparent)]
    Comm(Box<CommError>),
    /// The port cannot be taken.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// Host and port.
        address: String,
        /// What the system says.
        error: io::Error,
    },
    /// The cache of a server has no room for one text.
    #[error(
        "--cache-memory {}: a text of the whole context of {context} tokens takes {}",
        bytes(u128::from(*given)), bytes(u128::from(*least))
    )]
    CacheTooSmall {
        /// The given size, in bytes.
        given: u64,
        /// The smallest possible one.
        least: u64,
        /// The model's context, in tokens.
        context: usize,
    },
    /// The cache of a server is larger than the machine's memory.
    #[error(
        "--cache-memory {}: this machine has {} of memory",
        bytes(u128::from(*given)), bytes(u128::from(*installed))
    )]
    CacheTooLarge {
        /// The given size, in bytes.
        given: u64,
        /// Memory of the machine, in bytes.
        installed: u64,
    },
    /// A block of the cache is longer than every text.
    #[error("--block-tokens {block} exceeds the model's context of {context} tokens")]
    BlockTooLarge {
        /// Tokens of a block.
        block: usize,
        /// The model's context, in tokens.
        context: usize,
    },
    /// The file of the key has none that a header can carry.
    #[error("{} has no key: {reason}", file.display())]
    Key {
        /// The file.
        file: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
    /// A server had to end.
    #[error("the server ended before every request was answered")]
    Unanswered,
    /// The servers of `--replicas` have ended by themselves.
    #[error("all replicas have ended")]
    ReplicasEnded,
    /// The system has no threads or sockets for a server.
    #[error("cannot serve: {0}")]
    Serve(io::Error),
    /// Standard input cannot be read as text.
    #[error("cannot read the prompt from standard input: {0}")]
    Input(io::Error),
    /// Standard output cannot be written.
    #[error("cannot write to standard output: {0}")]
    Output(io::Error),
}

impl From<CommError> for InferError {
    fn from(error: CommError) -> Self {
        Self::Comm(Box::new(error))
    }
}

// Boxed: a checkpoint's error names files, tensors and shapes, and would make every result large.
impl From<CheckpointError> for InferError {
    fn from(error: CheckpointError) -> Self {
        Self::Checkpoint(Box::new(error))
    }
}

/// How to reduce the memory of most commands.
pub(crate) const LESS_MEMORY: &str =
    "use fewer (--batch) or shorter sequences, or keep the weights in fewer bits (--dtype int8)";

/// Paths as a list.
fn paths(files: &[PathBuf]) -> String {
    let names: Vec<String> = files
        .iter()
        .map(|file| file.display().to_string())
        .collect();
    names.join(", ")
}

/// How many were left out, in parentheses.
fn without(count: u64) -> String {
    match count {
        0 => String::new(),
        _ => format!(" ({} left out)", counted(count.into(), "pair")),
    }
}

fn and_more(more: usize) -> String {
    match more {
        0 => String::new(),
        1 => ", and in 1 more place".to_owned(),
        more => format!(", and in {more} more places"),
    }
}

impl Advise for InferError {
    fn advice(&self) -> Advice {
        let usage = |hint: &str| Advice::USAGE.hint(hint);
        let failure = |hint: &str| Advice::FAILURE.hint(hint);
        match self {
            Self::Device(DeviceError::NotCompiled { backend, .. }) => {
                Advice::USAGE.hint(devices::build_hint(backend))
            }
            Self::Device(error) => error.advice(),
            Self::Precision { .. } => {
                usage("use --device flex, or omit --precision: every device computes in f32")
            }
            Self::Computation(failure) => failure.advice(LESS_MEMORY),
            Self::Checkpoint(error) => error.advice(),
            Self::Folder(error) => error.advice(),
            Self::Tokenizer(error) => error.advice(),
            Self::Text(error) => match error {
                PackingError::Text(text) => match text.other_fields("--field NAME") {
                    Some(hint) => Advice::FAILURE.hint(hint),
                    None => text.advice(),
                },
                error => error.advice(),
            },
            Self::Tasks(error) => error.advice(),
            Self::NotAFile { .. } => usage(
                "name the files, such as --data FOLDER/*.txt; each file is one document, a file of JSON lines has one per line",
            ),
            Self::NoTokenizer { .. } => {
                failure("copy the tokenizer.json that the model was trained with into the folder")
            }
            Self::Vocabulary { .. } => failure(
                "tokenizer.json belongs to another model; use the one that this model was trained with",
            ),
            Self::NotFinite { .. } => failure(
                "evaluate on another device, such as --device flex, to find out whether the weights or the device cause it",
            ),
            Self::TraceInput { .. } => usage(
                "the input is a safetensors file with input_ids [batch, sequence] and, for padding, attention_mask of the same shape",
            ),
            Self::PromptLine { .. } | Self::NoPrompts { .. } => usage(
                "each line is a JSON object such as {\"prompt\": \"Once upon\"}, with id, max_tokens and seed where they are wanted",
            ),
            Self::Prompt { error, .. } => error.advice(),
            Self::AnswerLine { .. } => usage(
                "--output continues a file that the same command began, with the same prompts; choose another file, or remove this one",
            ),
            Self::TraceOutput { .. } => usage("name another file, such as trace.safetensors"),
            Self::OutputNotAFile { .. } => usage("without --output, texts go to standard output"),
            Self::OutputInUse { .. } => failure("wait until it has ended, or name another file"),
            Self::Draft { .. } => usage(
                "a draft is a smaller model with the same tokenizer.json; --draft prompt-lookup needs no model",
            ),
            // As shells report SIGINT.
            Self::Interrupted { to_file, .. } => {
                Advice::FAILURE.exit_code(130).hint(match to_file {
                    true => "run the same command to continue",
                    false => {
                        "with --output FILE, the same command continues where it was interrupted"
                    }
                })
            }
            Self::TextInterrupted { .. } => Advice::FAILURE.exit_code(130),
            Self::FieldUnused { .. } => usage(
                "JSON lines are files named .jsonl or .ndjson, or .json if the first line is an object; rename the file, or \
                 omit --field",
            ),
            Self::Context { .. } => usage("omit --context to use the model's own, up to 2048"),
            Self::BenchTooLong { .. } => usage("lower --prompt-tokens or --new-tokens"),
            Self::Load(error) => error.advice(),
            Self::Plan(error) => error.advice(),
            Self::Faulty { .. } => failure(
                "divide the checkpoint again, or copy what is listed from an undamaged copy",
            ),
            Self::DeviceFailed { hint, .. } => Advice {
                hint: hint.clone(),
                ..Advice::FAILURE
            },
            Self::Differs { .. } => failure(
                "look at the first part that differs; later differences may follow from it. --html FILE shows all layers; --tolerance allows more",
            ),
            Self::Layout(error) => usage(&error.hint),
            Self::Processes { .. } => usage(
                "start as many processes as ranks: mpirun -n N with N = tensor × pipeline, or run without mpirun: ranks are then threads",
            ),
            Self::Divided { .. } => usage(
                "omit --tensor, --pipeline and --expert; `cargo infer unshard` makes a checkpoint that can be divided otherwise",
            ),
            Self::DividedComparison { folder, layout } => Advice::USAGE.hint(format!(
                "--layouts {} compares devices in it; to compare layouts, reassemble the checkpoint first: cargo infer unshard {} --output OTHER",
                LayoutName(*layout),
                folder.display()
            )),
            Self::SingleRank { .. } => usage(
                "run it without mpirun and without --tensor, --pipeline and --expert, on a checkpoint that is not divided (see `cargo infer unshard`)",
            ),
            Self::OfGguf { .. } => usage("--gguf FILE, in place of --output, writes a file that has it"),
            Self::TextAlready { .. } => usage("omit it: the model is one of text alone"),
            Self::Blind { .. } => usage(
                "use a checkpoint of a model that sees pictures, whose model_type is mllama or firebox_vision",
            ),
            Self::Pair { error, .. } => match error.advice() {
                advice if advice.hint.is_some() => advice,
                advice => Advice {
                    hint: Some("--on-error skip leaves out pairs that cannot be used".to_owned()),
                    ..advice
                },
            },
            Self::LongCaption { .. } => {
                failure("shorten it; --on-error skip leaves out pairs that cannot be used")
            }
            Self::NoPairs { .. } => usage(
                "each line is a JSON object such as {\"image\": \"photo.png\", \"caption\": \"a red boiler\"}; --image and --field \
                 name its fields",
            ),
            Self::Picture(error) => error.advice(),
            Self::Processor(error) => error.advice(),
            Self::Arrangement { .. } => usage("crop the picture to another shape"),
            Self::ImageTokens { .. } => usage(
                "give --image once for each image token, or a prompt without any: then all pictures stand before it",
            ),
            Self::LongPrompt { .. } => usage("use a shorter prompt"),
            Self::BlindDraft { .. } => usage("omit it, or use --draft prompt-lookup"),
            Self::Rank(failure) => failure.advice(),
            Self::Program(error) => error.advice(),
            Self::Reported { exit_code } => Advice {
                is_printed: true,
                ..Advice::FAILURE.exit_code(*exit_code)
            },
            Self::SingleProcess { .. } => {
                usage("start it without mpirun; eval, generate and trace run on many processes")
            }
            Self::Comm(error) => error.advice(),
            Self::Listen { error, .. } => match error.kind() {
                io::ErrorKind::AddrInUse | io::ErrorKind::PermissionDenied => {
                    failure("choose another --port; 0 takes a free one, and the log says which")
                }
                _ => failure(
                    "--host is a name or address of this machine: 127.0.0.1 for its own programs alone, 0.0.0.0 for others too",
                ),
            },
            Self::CacheTooSmall { .. } => usage("give more, or leave it out"),
            Self::CacheTooLarge { .. } => usage("give less, or leave it out"),
            Self::BlockTooLarge { .. } => {
                usage("blocks are of some tokens, such as 16, so that texts can share what they begin with")
            }
            Self::Key { .. } => usage("write the key on its only line"),
            Self::Unanswered => failure(
                "a longer --drain-timeout gives requests more time; without it, they take as long as they take",
            ),
            Self::ReplicasEnded => failure("the lines of the log above say why each one has"),
            Self::Missing { option: "--data", .. } => usage(
                "name files of text, JSON lines or Parquet, such as README.md, relative to the working directory",
            ),
            Self::Missing { .. } => usage("create it, or name an existing folder, relative to the working directory"),
            Self::NotAFolder { .. } | Self::Read(_) | Self::Place(_) => Advice::USAGE,
            Self::Process(_) | Self::Serve(_) | Self::Write(_) | Self::Input(_) | Self::Output(_) => Advice::FAILURE,
        }
    }
}
