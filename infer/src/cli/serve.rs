//! `cargo infer serve`.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use clap::Args;
use clap::builder::ArgPredicate;
use firebox_console::durable::FileError;
use firebox_console::numbers::parse_bytes;
use firebox_model::generate::DraftTokens;
use firebox_runtime::device;
use firebox_serve::http;
use firebox_serve::route::Address;

use super::generate::draft_tokens;
use super::{DtypeArgs, LayoutArgs, ModelArgs, Process, at_least_one};
use crate::InferError;
use crate::engine::Engine;
use crate::generate::{Draft, Speculation};
use crate::ranks::RankOptions;
use crate::replicas::Parent;
use crate::route::{RouteOptions, route, serve_replicas};
use crate::serve::{ServeOptions, loading, serve};

pub(super) const HELP: &str = "Examples:\n  \
    cargo infer serve runs/quickstart\n  \
    cargo infer serve Qwen3-4B --precision bf16 --host 0.0.0.0 --api-key-file key.txt\n  \
    cargo infer serve Qwen3-4B --speculate draft=Qwen3-0.6B\n  \
    cargo infer serve runs/quickstart --replicas 2\n  \
    cargo infer serve --route http://node1:8000,http://node2:8000 --port 9000\n  \
    curl http://127.0.0.1:8000/v1/completions -d '{\"prompt\": \"fn main\", \"max_tokens\": 20}'\n\n\
    The interface is OpenAI's: /v1/completions (with log-probabilities and echo), /v1/chat/completions (where the \
    checkpoint has a chat template), /v1/models; beside it /health, /metrics (Prometheus), /tokenize, /detokenize, \
    /tokenizer_info, /version, and a page at /.\n\n\
    Standard error says `serving NAME at http://HOST:PORT` when requests are accepted. SIGTERM or Ctrl-C ends the \
    server: new requests are refused, those that were accepted are answered, and the exit code is 0. A second signal, or \
    --drain-timeout, ends what is left with an error; the exit code is then 1.\n\n\
    A model that sees takes pictures in messages, as parts of type image_url: PNG, JPEG or WebP in a data: URL, or a file \
    below --image-folder; nothing is fetched from other machines. Without a chat template a single message is continued \
    behind its pictures, as by `cargo infer generate --image`. A request's body has 32 MiB at most.\n\n\
    A text with a seed depends on its request alone, not on what else is served. Prompts are read in pieces of \
    --max-batch-tokens, so that the texts of others go on meanwhile: a step reads no more of prompts than that, and \
    a token (with drafts, some more) of every text. Where the cache is full, the newest text begins anew later; its client sees a pause.";

/// How to reduce the memory of a server.
pub(super) const LESS_MEMORY: &str =
    "lower --cache-memory or --max-sequences, or keep the weights in fewer bits (--dtype int8)";

/// The draft that needs no model.
const PROMPT: &str = "prompt";
/// No draft.
const OFF: &str = "off";
/// What stands before the checkpoint of a draft.
const DRAFT: &str = "draft=";

/// Pictures of a request, where nobody says otherwise.
const PICTURES: usize = 8;

/// Bytes of the pictures of all requests that wait, where nobody says otherwise.
const PICTURE_BYTES: u64 = 1 << 30;

/// More servers on one machine than this are a slip.
const MOST_REPLICAS: usize = 64;

/// Where other machines do not come in.
const LOOPBACK: &str = "127.0.0.1";

/// Stands for CHECKPOINT with --route, which has none.
pub(super) const NO_CHECKPOINT: &str = "none";

/// What a router has no use for, since its servers have it.
const OF_MODEL: [&str; 19] = [
    "checkpoint",
    "accept",
    "device",
    "dtype",
    "precision",
    "tensor",
    "pipeline",
    "expert",
    "name",
    "max_sequences",
    "max_batch_tokens",
    "cache_memory",
    "block_tokens",
    "max_queue",
    "speculate",
    "speculate_tokens",
    "image_folder",
    "max_pictures",
    "picture_memory",
];

/// What concerns the address in front of replicas alone, or is another for each of them.
const OF_FRONT: [&str; 4] = ["--replicas", "--host", "--port", "--threads"];

/// How many texts are generated at once, with which memory and which drafts.
#[derive(Debug, Clone, Args)]
pub(super) struct EngineArgs {
    /// Number of sequences to generate at once; more is faster for all together and slower for each.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = at_least_one)]
    max_sequences: usize,
    /// Number of tokens of prompts to read in a step; more is faster, and makes those wait longer who write meanwhile.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_one)]
    max_batch_tokens: usize,
    /// Memory for keys and values, such as 4GB; it holds at least one text of the whole context [default: what
    /// --max-sequences texts can take, and at most a quarter of the machine's memory].
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    cache_memory: Option<u64>,
    /// Tokens of a block of the cache; texts share whole blocks of what they begin with.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least_one)]
    block_tokens: usize,
    /// Number of sequences that may wait; requests beyond it are refused for the time being.
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = at_least_one)]
    max_queue: usize,
    /// Source of guesses for the next tokens, which the model verifies: `draft=CHECKPOINT`, a smaller model with the same
    /// tokenizer; `prompt`, which copies what followed the same tokens earlier in the text; or `off`. Texts stay the same.
    #[arg(long, value_name = "SOURCE", default_value = OFF, value_parser = source)]
    speculate: String,
    /// Number of tokens to guess at a time; `auto` measures which number is fastest, 0 included.
    #[arg(long, value_name = "N|auto", default_value = "auto", value_parser = draft_tokens)]
    speculate_tokens: DraftTokens,
}

#[derive(Debug, Args)]
#[command(mut_arg("checkpoint", |checkpoint| checkpoint
    .required(false)
    .required_unless_present("route")
    .default_value_if("route", ArgPredicate::IsPresent, NO_CHECKPOINT)))]
pub(super) struct ServeArgs {
    #[command(flatten)]
    pub(super) model: ModelArgs,
    #[command(flatten)]
    weights: DtypeArgs,
    #[command(flatten)]
    ranks: LayoutArgs,
    /// Host name or address to listen on; 0.0.0.0 lets other machines in.
    #[arg(long, default_value = LOOPBACK, value_parser = not_empty)]
    host: String,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = 8000)]
    port: u16,
    /// Name of the model for clients [default: the name of CHECKPOINT].
    #[arg(long, value_parser = not_empty)]
    name: Option<String>,
    #[command(flatten)]
    engine: EngineArgs,
    /// Folder of pictures that requests may name (`file://` or a path below it), where the model sees. Without it, a picture is
    /// part of the request, as a `data:` URL. Addresses of other machines are never fetched.
    #[arg(long, value_name = "FOLDER")]
    image_folder: Option<PathBuf>,
    /// Number of pictures that a request may have, where the model sees.
    #[arg(long, value_name = "N", default_value_t = PICTURES, value_parser = at_least_one)]
    max_pictures: usize,
    /// Memory for the pictures of requests that wait, 12 bytes for each pixel of their tiles, such as 500MiB; requests beyond it
    /// are refused for the time being, and one that takes more by itself altogether [default: 1GiB].
    #[arg(long, value_name = "SIZE", value_parser = memory)]
    picture_memory: Option<u64>,
    /// Seconds that accepted requests may take after the signal to end [default: as long as they take].
    #[arg(long, value_name = "SECONDS")]
    drain_timeout: Option<u64>,
    /// Seconds after which a client that reads nothing of its reply counts as gone.
    #[arg(long, value_name = "SECONDS", default_value_t = 60, value_parser = clap::value_parser!(u64).range(1..))]
    write_timeout: u64,
    /// Key that clients must send as `authorization: Bearer KEY`. Other users of this machine can see it; see
    /// --api-key-file.
    #[arg(long, value_name = "KEY", conflicts_with = "api_key_file", value_parser = key)]
    api_key: Option<String>,
    /// File with the key.
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Running servers of one model, such as http://node1:8000,http://node2:8000: this one stands in front of them and has no
    /// CHECKPOINT of its own. Requests whose prompts begin alike go to the same server unless it is much busier than others; a
    /// server that fails is passed over, and what it had not begun to answer goes to another one.
    #[arg(long, value_name = "URL,URL…", value_delimiter = ',', conflicts_with_all = OF_MODEL)]
    route: Vec<Address>,
    /// Number of servers to start, each a process with a copy of the model and its share of --threads; this one stands in
    /// front of them as with --route, and ends them. One that ends by itself is not started again.
    #[arg(long, value_name = "N", conflicts_with = "route", value_parser = replicas)]
    replicas: Option<usize>,
    /// This process is one of so many replicas of the one that has started it.
    #[arg(long, value_name = "N", hide = true, conflicts_with_all = ["route", "replicas"], value_parser = at_least_one)]
    replica_of: Option<usize>,
}

impl ServeArgs {
    /// Whether the model runs in this process.
    pub(super) fn runs_model(&self) -> bool {
        self.route.is_empty() && self.replicas.is_none()
    }

    pub(super) fn on_ranks(&self, process: &Process) -> RankOptions {
        self.model.on_ranks(self.weights, self.ranks, process)
    }

    pub(super) fn execute(self, process: &Process) -> Result<(), InferError> {
        if !self.runs_model() {
            let options = RouteOptions {
                host: self.host.clone(),
                port: self.port,
                http: self.http()?,
            };
            return match self.replicas {
                Some(replicas) => {
                    let threads = process.threads.unwrap_or_else(device::threads);
                    serve_replicas(commands(replicas, threads)?, &options)
                }
                None => route(self.route, &options),
            };
        }
        let options = self.options()?;
        // A port that is in use shows before a model is loaded.
        let loading = loading(&options)?;
        let (model, weights, ranks) = (self.model.clone(), self.weights, self.ranks);
        model.with_engine(weights, ranks, process, move |open| {
            let engine = open()?;
            let speculation = self
                .engine
                .speculation(&engine, &self.model, self.weights)?;
            serve(
                &engine,
                &self.model.source.checkpoint,
                &speculation,
                &options,
                loading,
            )
        })
    }

    fn options(&self) -> Result<ServeOptions, InferError> {
        Ok(ServeOptions {
            host: self.host.clone(),
            port: self.port,
            name: self.name.clone(),
            http: self.http()?,
            parent: self.replica_of.map(Parent::of),
            image_folder: self.image_folder.clone(),
            pictures: self.max_pictures,
            picture_bytes: self.picture_memory.unwrap_or(PICTURE_BYTES),
            ..self.engine.options()
        })
    }

    fn http(&self) -> Result<http::Options, InferError> {
        Ok(http::Options {
            api_key: given_key(self.api_key.as_deref(), self.api_key_file.as_deref())?,
            write_timeout: Duration::from_secs(self.write_timeout),
            drain_timeout: self.drain_timeout.map(Duration::from_secs),
            ..http::Options::default()
        })
    }
}

impl EngineArgs {
    /// How a server with these is run on a free port of this machine.
    pub(super) fn options(&self) -> ServeOptions {
        ServeOptions {
            host: LOOPBACK.to_owned(),
            port: 0,
            name: None,
            sequences: self.max_sequences,
            step_tokens: self.max_batch_tokens,
            cache_bytes: self.cache_memory,
            block_tokens: self.block_tokens,
            queue: self.max_queue,
            http: http::Options::default(),
            image_folder: None,
            pictures: PICTURES,
            picture_bytes: PICTURE_BYTES,
            parent: None,
        }
    }

    /// Opens a draft for a model that is open.
    pub(super) fn speculation(
        &self,
        engine: &Engine,
        model: &ModelArgs,
        weights: DtypeArgs,
    ) -> Result<Speculation, InferError> {
        let draft = match self.speculate.strip_prefix(DRAFT) {
            Some(path) => {
                let accept = &model.source.accept;
                Draft::open(Path::new(path), accept, weights.dtype, engine)?
            }
            None if self.speculate == PROMPT => Draft::PromptLookup,
            None => Draft::None,
        };
        Ok(Speculation {
            draft,
            draft_tokens: self.speculate_tokens,
        })
    }
}

/// The commands of replicas: this process's own, each with its share of the threads and a free port.
fn commands(replicas: usize, threads: usize) -> Result<Vec<Command>, InferError> {
    let program = env::current_exe().map_err(InferError::Process)?;
    let given: Vec<OsString> = env::args_os().skip(1).collect();
    let commands = (0..replicas).map(|replica| {
        let share = threads / replicas + usize::from(replica < threads % replicas);
        let mut command = Command::new(&program);
        command
            .args(replica_arguments(&given))
            .args(["--host", LOOPBACK, "--port", "0"])
            .args(["--replica-of", &replicas.to_string()])
            .args(["--threads", &share.max(1).to_string()])
            // What it says goes into a log.
            .env("NO_COLOR", "1");
        command
    });
    Ok(commands.collect())
}

/// The arguments that replicas share with the process that starts them.
fn replica_arguments(given: &[OsString]) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut given = given.iter();
    while let Some(argument) = given.next() {
        let text = argument.to_string_lossy();
        let name = text.split('=').next().unwrap_or_default();
        match (OF_FRONT.contains(&name), text.contains('=')) {
            (true, true) => (),
            // Its value.
            (true, false) => drop(given.next()),
            (false, _) => kept.push(argument.clone()),
        }
    }
    kept
}

/// The key that the command line or a file gives, if any.
pub(super) fn given_key(
    key: Option<&str>,
    file: Option<&Path>,
) -> Result<Option<String>, InferError> {
    match file {
        Some(file) => key_of(file).map(Some),
        None => Ok(key.map(str::to_owned)),
    }
}

fn key_of(file: &Path) -> Result<String, InferError> {
    let text = fs::read_to_string(file).map_err(FileError::of("read", file));
    key(&text.map_err(InferError::Read)?).map_err(|reason| InferError::Key {
        file: file.to_owned(),
        reason,
    })
}

/// A key, without the white space around it.
pub(super) fn key(text: &str) -> Result<String, &'static str> {
    let key = text.trim();
    match key {
        "" => Err("it must not be empty"),
        _ if !key.chars().all(|c| c.is_ascii_graphic()) => {
            Err("it must have visible ASCII characters alone, as clients send it in a header")
        }
        _ => Ok(key.to_owned()),
    }
}

fn source(text: &str) -> Result<String, String> {
    let is_draft = text
        .strip_prefix(DRAFT)
        .is_some_and(|path| !path.is_empty());
    match is_draft || text == PROMPT || text == OFF {
        true => Ok(text.to_owned()),
        false => Err("must be draft=CHECKPOINT, prompt or off".to_owned()),
    }
}

pub(super) fn not_empty(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("must not be empty".to_owned()),
        text => Ok(text.to_owned()),
    }
}

fn replicas(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(number) if (1..=MOST_REPLICAS).contains(&number) => Ok(number),
        _ => Err(format!("must be an integer from 1 to {MOST_REPLICAS}")),
    }
}

fn memory(text: &str) -> Result<u64, String> {
    match parse_bytes(text) {
        Some(size @ 1..) => Ok(size),
        _ => Err("must be a size greater than 0, such as 4GB or 500MiB".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replicas_get_all_options_but_those_of_the_front() {
        let arguments = |line: &str| {
            let given: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            replica_arguments(&given).join(" ".as_ref())
        };
        assert_eq!(
            arguments(
                "--threads 4 serve a --port=80 --name x --replicas 3 --dtype=bf16 --host 0.0.0.0 --accept b"
            ),
            "serve a --name x --dtype=bf16 --accept b"
        );
    }
}
