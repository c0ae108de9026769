//! Errors of checkpoints.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use firebox_console::advice::{Advice, Advise};
use firebox_console::durable::FileError;
use firebox_kernels::dtype::{WeightDtype, WeightFormat};
use firebox_model::parallel::LayoutError;

use super::families::Family;
use super::gguf::BlockType;

/// Why a checkpoint cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// A file or folder cannot be read, written, created or removed.
    #[error(transparent)]
    Io(#[from] FileError),
    /// The folder is not a checkpoint.
    #[error("{} is not a checkpoint: {missing} is missing", folder.display())]
    NotACheckpoint {
        /// The folder.
        folder: PathBuf,
        /// The missing file.
        missing: &'static str,
    },
    /// The file is not in its format, or is truncated.
    #[error("{} is damaged: {reason}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A field of config.json that Firebox does not support.
    #[error("{}: {key} = {value}: {rule}", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// The field.
        key: String,
        /// Its value.
        value: String,
        /// What is allowed.
        rule: String,
    },
    /// A field of config.json that its family does not have.
    #[error("{}: {key} = {value}: {family} has no such field{}", path.display(), owners(key))]
    ForeignField {
        /// The file.
        path: PathBuf,
        /// The field.
        key: String,
        /// Its value.
        value: String,
        /// The file's `model_type`.
        family: &'static str,
        /// The flag or key that accepts it, if the user has one.
        accept: Option<String>,
    },
    /// A field that a user accepts, and that config.json does not have.
    #[error("{option} {key}: {} has no such field", path.display())]
    AcceptedAbsent {
        /// The file.
        path: PathBuf,
        /// The field.
        key: String,
        /// The flag or key that names it.
        option: &'static str,
        /// The fields that could be accepted.
        unknown: Vec<String>,
    },
    /// A field that a user accepts, and that Firebox knows.
    #[error(
        "{option} {key}: {} has {key} = {value}, which Firebox knows and which therefore cannot be accepted: {reason}",
        path.display()
    )]
    AcceptedKnown {
        /// The file.
        path: PathBuf,
        /// The field.
        key: String,
        /// Its value.
        value: String,
        /// The flag or key that names it.
        option: &'static str,
        /// What Firebox makes of it, or why it does not compute it.
        reason: String,
    },
    /// The weights are quantized.
    #[error("{}: {key}: the weights are quantized{}; Firebox reads F32, F16 and BF16", path.display(), by(method.as_deref()))]
    Quantized {
        /// The config.json.
        path: PathBuf,
        /// The field that says so.
        key: String,
        /// The method, such as `gptq`.
        method: Option<String>,
    },
    /// A model cannot be divided so.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The folder is not a sharded checkpoint.
    #[error("{} is not a sharded checkpoint: layout.json is missing", folder.display())]
    NotSharded {
        /// The folder.
        folder: PathBuf,
    },
    /// A folder that has something in it.
    #[error("{} exists and is not empty", folder.display())]
    Occupied {
        /// The folder.
        folder: PathBuf,
    },
    /// A sharded checkpoint where a whole one is needed.
    #[error("{} is divided among ranks, and this needs a whole checkpoint", folder.display())]
    Sharded {
        /// The folder.
        folder: PathBuf,
    },
    /// The work was ended on request.
    #[error("interrupted; nothing was written")]
    Stopped,
    /// A packed checkpoint cannot be divided.
    #[error("{} is packed in MXFP4, whose groups of values ranks cannot divide", folder.display())]
    PackedShard {
        /// The checkpoint.
        folder: PathBuf,
    },
    /// The tensors are not those of the model.
    #[error("{}: the tensors do not match the model: {differences}", place.display())]
    Mismatch {
        /// The file or folder.
        place: PathBuf,
        /// Names and shapes of the tensors that are missing, superfluous or have another shape.
        differences: String,
    },
    /// The index of a sharded checkpoint does not match its files.
    #[error("{}: {reason}", path.display())]
    Index {
        /// The index.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// There are two sets of weights.
    #[error("{} contains both model.safetensors and model.safetensors.index.json", folder.display())]
    TwoSets {
        /// The folder.
        folder: PathBuf,
    },
    /// The embeddings are tied, but the stored head differs from the embedding.
    #[error("{}: config.json has tie_word_embeddings = true, but lm_head.weight differs from model.embed_tokens.weight", folder.display())]
    HeadNotTied {
        /// The folder.
        folder: PathBuf,
    },
    /// A tensor of an unsupported type.
    #[error("{}: tensor {name} has type {dtype}; supported are F32, F16 and BF16", file.display())]
    DataType {
        /// The file.
        file: PathBuf,
        /// The tensor's name.
        name: String,
        /// Its type.
        dtype: String,
    },
    /// A GGUF file of a kind that Firebox does not read.
    #[error("{} is a GGUF file that Firebox does not read: {reason}", path.display())]
    GgufUnread {
        /// The file.
        path: PathBuf,
        /// What is not read.
        reason: String,
    },
    /// A tensor of an unsupported type in a GGUF file.
    #[error("{}: tensor {name} has type {kind}; of GGUF files Firebox reads F32, F16, BF16 and Q8_0", file.display())]
    GgufType {
        /// The file.
        file: PathBuf,
        /// The tensor's name.
        name: String,
        /// Its type.
        kind: String,
    },
    /// A model that llama.cpp does not compute as Firebox does.
    #[error("the model cannot be exported to GGUF: {reason}")]
    GgufExport {
        /// What is computed otherwise.
        reason: String,
    },
    /// A weight beyond the range of a type of GGUF files.
    #[error("tensor {name} contains a value beyond the range of {kind}")]
    GgufRange {
        /// The tensor's name.
        name: String,
        /// The type.
        kind: BlockType,
    },
    /// A weight that is infinite or NaN.
    #[error("{}: tensor {name} contains a value that is not finite", file.display())]
    NotFinite {
        /// The file.
        file: PathBuf,
        /// The tensor's name.
        name: String,
    },
    /// A weight beyond the range of a type.
    #[error("tensor {name} contains a value beyond the range of {format}, whose largest is {}", largest(*format))]
    OutOfRange {
        /// The tensor's name.
        name: String,
        /// The format.
        format: WeightFormat,
    },
    /// A device that does not hold weights in a format.
    #[error("--dtype {format}: this device does not support {format}")]
    Device {
        /// The format.
        format: WeightFormat,
    },
    /// A type that is too coarse for training.
    #[error(
        "weights in {format} cannot be trained: its rounding is coarser than the optimizer's updates"
    )]
    Training {
        /// The format.
        format: WeightFormat,
    },
}

/// The largest weight of a format.
fn largest(format: WeightFormat) -> &'static str {
    match format {
        WeightFormat::Plain(WeightDtype::F16) => "65504",
        // 127 scales in f16.
        WeightFormat::Int8 => "about 8.3 million",
        WeightFormat::Plain(WeightDtype::F32 | WeightDtype::Bf16) => "3.4e38",
    }
}

/// Whether the weights are there in the format of PyTorch.
fn has_pickle(folder: &Path) -> bool {
    let names = [
        "pytorch_model.bin",
        "pytorch_model.bin.index.json",
        "consolidated.00.pth",
    ];
    names.iter().any(|name| folder.join(name).exists())
}

fn by(method: Option<&str>) -> String {
    method.map_or_else(String::new, |method| format!(" ({method})"))
}

/// Which families have a field that another one does not.
fn owners(field: &str) -> String {
    // Without the table that it is in.
    let field = field.rsplit_once('.').map_or(field, |(_, field)| field);
    match Family::having(field).as_slice() {
        [] => ", as far as Firebox knows".to_owned(),
        others => format!(", which is one of {}", others.join(", ")),
    }
}

impl Advise for CheckpointError {
    fn advice(&self) -> Advice {
        match self {
            Self::NotACheckpoint { folder, .. } if has_pickle(folder) => Advice::USAGE.hint(
                "its weights are a pickle, which Firebox does not read; convert them in Python: AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(OTHER)",
            ),
            Self::Layout(error) => Advice::USAGE.hint(error.hint.clone()),
            Self::NotSharded { .. } => Advice::USAGE.hint(
                "`cargo infer shard CHECKPOINT --tensor N --pipeline N --output FOLDER` writes one",
            ),
            Self::Occupied { .. } => Advice::USAGE.hint("choose another folder, or empty this one"),
            Self::Sharded { folder } => Advice::USAGE.hint(format!(
                "reassemble it first: cargo infer unshard {} --output OTHER",
                folder.display()
            )),
            // As shells report SIGINT.
            Self::Stopped => Advice::FAILURE.exit_code(130),
            Self::PackedShard { folder } => Advice::USAGE.hint(format!(
                "unpack it first: cargo infer export {} --output OTHER --dtype bf16",
                folder.display()
            )),
            Self::NotACheckpoint { .. } => Advice::USAGE.hint(
                "a checkpoint is a folder with config.json and model.safetensors, such as runs/NAME/checkpoints/step-0000100",
            ),
            Self::Device { .. } => Advice::USAGE.hint(
                "omit --dtype to use f32, which every device supports, or try another of bf16, f16 and int8",
            ),
            Self::Damaged { .. } => Advice::FAILURE.hint(
                "the file may have been truncated while it was copied; copy it again or use another checkpoint",
            ),
            Self::ForeignField { key, accept, .. } => {
                let mut hint = match accept {
                    Some(accept) => format!(
                        "if it does not affect what the network computes, {accept} makes Firebox ignore it and keep it"
                    ),
                    None => "if it does not affect what the network computes, remove it".to_owned(),
                };
                let others = Family::having(key);
                if !others.is_empty() {
                    let others = others.join(" or ");
                    hint += &format!("; if the weights are of the family {others}, set model_type");
                }
                Advice::FAILURE.hint(hint)
            }
            Self::AcceptedAbsent { unknown, .. } => Advice::USAGE.hint(match unknown.as_slice() {
                [] => "omit it: the file has no other field that Firebox does not know".to_owned(),
                unknown => format!(
                    "the file has fields that Firebox does not know: {}",
                    unknown.join(", ")
                ),
            }),
            Self::AcceptedKnown { option, .. } => Advice::USAGE.hint(format!(
                "omit it: {option} is for fields that Firebox does not know, such as notes of other tools"
            )),
            Self::Quantized { .. } => Advice::FAILURE.hint(
                "use the model's original weights, or write them from Python: model = AutoModelForCausalLM.from_pretrained(FOLDER); model.dequantize().save_pretrained(OTHER)",
            ),
            Self::DataType { dtype, .. } if dtype == "F64" => Advice::FAILURE.hint(
                "convert them in Python: AutoModelForCausalLM.from_pretrained(FOLDER, dtype=\"float32\").save_pretrained(OTHER)",
            ),
            Self::Mismatch { .. } => Advice::FAILURE.hint(
                "config.json and the weights belong to different models, or to a family that Firebox does not support",
            ),
            Self::Index { .. } => Advice::FAILURE
                .hint("copy all shards and their index again, from the same source"),
            Self::TwoSets { .. } => Advice::FAILURE.hint("keep only one of the two"),
            Self::HeadNotTied { .. } => Advice::FAILURE
                .hint("set tie_word_embeddings = false if the two were trained separately"),
            Self::GgufUnread { .. } => Advice::FAILURE.hint(
                "llama.cpp's llama-gguf-split --merge joins the parts of a model, and its convert_hf_to_gguf.py writes current files",
            ),
            Self::GgufType { file, .. } => Advice::FAILURE.hint(format!(
                "convert it to one of these, such as with llama.cpp's tool: llama-quantize --allow-requantize {} OTHER.gguf Q8_0",
                file.display()
            )),
            Self::GgufExport { .. } => Advice::USAGE.hint(
                "`cargo infer export CHECKPOINT --output FOLDER` writes it in Hugging Face's format, and `cargo infer serve` serves it",
            ),
            Self::GgufRange { .. } => Advice::FAILURE.hint("--dtype bf16 has the range of f32"),
            Self::OutOfRange { .. } => Advice::FAILURE.hint("--dtype bf16 has the range of f32"),
            Self::Training { .. } => Advice::FAILURE.hint("load the weights in f32"),
            Self::Io(error) if error.source.kind() == ErrorKind::StorageFull => {
                Advice::FAILURE.hint("free some disk space; earlier checkpoints are intact")
            }
            Self::Io(_)
            | Self::Config { .. }
            | Self::DataType { .. }
            | Self::NotFinite { .. } => Advice::FAILURE,
        }
    }
}
