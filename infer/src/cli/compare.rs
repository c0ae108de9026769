//! `cargo infer compare`, and the hidden command of its worker processes.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use firebox_console::durable::check_writable;
use firebox_console::progress::Progress;
use firebox_console::report::page_path;
use firebox_console::terminal::print;
use firebox_kernels::dtype::WeightFormat;
use firebox_runtime::device;

use super::values::positive;
use super::{CheckpointArgs, at_least_one, print_json};
use crate::InferError;
use crate::compare::{Candidate, LayoutName, Options, Worker, compare};
use crate::eval::Text;

pub(super) const HELP: &str = "Examples:\n  \
    cargo infer compare runs/quickstart\n  \
    cargo infer compare runs/quickstart --devices flex,wgpu --gradients --html compared.html\n  \
    cargo infer compare runs/quickstart --devices flex --dtype f32,bf16 --data notes.txt\n  \
    cargo infer compare runs/quickstart --devices flex --layouts 1x1,1x2,2x2x2\n  \
    cargo infer compare runs/vision --devices flex,ndarray --image photo.png\n\n\
    The first device is the reference. Each part of each layer is also computed from the reference's inputs, so \
    that an error is reported where it originates. The allowed relative difference of a part is 2e-5 in f32 \
    (devices agree to 1e-6), 2e-3 in f16 and 1.6e-2 in bf16, 3.1e-2 in int8 (eight roundings), and five times that for the whole \
    network and for gradients.\n\n\
    The exit code is 1 if a device fails or exceeds a tolerance, so the command can run in CI.";

#[derive(Debug, Args)]
pub(super) struct CompareArgs {
    #[command(flatten)]
    source: CheckpointArgs,
    /// Devices to compare, the reference first [default: every device of this build and machine].
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    devices: Vec<String>,
    /// Types to keep the weights in: f32, bf16, f16 or int8; each device runs with each type.
    #[arg(
        long,
        value_name = "TYPES",
        value_delimiter = ',',
        default_value = "f32"
    )]
    dtype: Vec<WeightFormat>,
    /// Layouts of ranks to compare, such as 1x1,2x1,2x4: pipeline stages × tensor ranks, and `x` groups of experts if there
    /// are several; each device runs with each of them.
    #[arg(
        long,
        value_name = "LAYOUTS",
        value_delimiter = ',',
        default_value = "1x1"
    )]
    layouts: Vec<LayoutName>,
    /// Text files; each file is one document, a file of JSON lines (.jsonl, .ndjson, or .json whose first line is an
    /// object) has one document per line [default: the built-in sample text].
    #[arg(long, value_name = "PATH", num_args = 1..)]
    data: Vec<PathBuf>,
    /// Field of each JSON line that contains the text [default: text].
    #[arg(long, value_name = "NAME", requires = "data")]
    field: Option<String>,
    /// Picture that all of the text sees: a PNG, JPEG or WebP file; repeat it for several. The tower and the layers that attend to
    /// pictures are compared too.
    #[arg(long, value_name = "FILE")]
    image: Vec<PathBuf>,
    /// Let text that spells a special token, such as <|im_start|>, become that token.
    #[arg(long, requires = "data")]
    special_tokens: bool,
    /// Maximum number of tokens.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_one)]
    tokens: usize,
    /// Also compare the gradient of every parameter (f32 weights only).
    #[arg(long)]
    gradients: bool,
    /// Allowed relative difference of a part; five times that for the whole network and for gradients [default: 2e-5 in
    /// f32, 2e-3 in f16, 1.6e-2 in bf16, 3.1e-2 in int8].
    #[arg(long, value_name = "T", value_parser = positive)]
    tolerance: Option<f64>,
    /// Also write an HTML report.
    #[arg(long, value_name = "FILE", value_parser = page_path)]
    html: Option<PathBuf>,
    /// Print one JSON object instead of tables.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
pub(super) struct DeviceArgs {
    #[command(flatten)]
    source: CheckpointArgs,
    #[arg(long)]
    pub(super) device: String,
    #[arg(long)]
    dtype: WeightFormat,
    #[arg(long)]
    layout: LayoutName,
    #[arg(long)]
    tokens: PathBuf,
    #[arg(long)]
    output: PathBuf,
    #[arg(long)]
    reference: Option<PathBuf>,
    #[arg(long)]
    gradients: bool,
}

impl CompareArgs {
    pub(super) fn execute(self, threads: Option<usize>) -> Result<(), InferError> {
        let text = (!self.data.is_empty()).then_some(Text {
            files: self.data,
            field: self.field,
            max_tokens: None,
        });
        text.as_ref().map(Text::check).transpose()?;
        if let Some(path) = &self.html {
            check_writable(path).map_err(InferError::Place)?;
        }
        let devices = match self.devices.is_empty() {
            true => device::backends()
                .into_iter()
                .flat_map(|backend| backend.devices)
                .collect(),
            false => self.devices,
        };
        let mut candidates = Vec::new();
        for device in &devices {
            for &dtype in &self.dtype {
                candidates.extend(self.layouts.iter().map(|&LayoutName(layout)| Candidate {
                    device: device.clone(),
                    dtype,
                    layout,
                }));
            }
        }
        let options = Options {
            checkpoint: self.source.checkpoint,
            accept: self.source.accept,
            candidates,
            text,
            images: self.image,
            special_tokens: self.special_tokens,
            tokens: self.tokens,
            gradients: self.gradients,
            tolerance: self.tolerance,
            threads,
        };
        let progress = Progress::new("comparing", 0);
        let compared = compare(&options, |name, stage| {
            progress.tell(format!("{name}: {stage}"))
        });
        drop(progress);
        let compared = compared?;
        if let Some(path) = self.html {
            compared.page().write(&path)?;
            tracing::info!("wrote the report to {}", path.display());
        }
        match self.json {
            true => print_json(&compared)?,
            false => print(&compared.to_string()).map_err(InferError::Output)?,
        }
        compared.verdict()
    }
}

impl DeviceArgs {
    pub(super) fn execute(self, threads: Option<usize>) -> Result<(), InferError> {
        let worker = Worker {
            checkpoint: self.source.checkpoint,
            accept: self.source.accept,
            device: self.device,
            dtype: self.dtype,
            layout: self.layout.0,
            tokens: self.tokens,
            output: self.output,
            reference: self.reference,
            gradients: self.gradients,
            threads,
        };
        let mut output = std::io::stdout().lock();
        worker.run(|stage| {
            // Ignore a closed pipe.
            let _ = writeln!(output, "{stage}").and_then(|()| output.flush());
        })
    }
}
