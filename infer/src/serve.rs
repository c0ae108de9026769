//! `cargo infer serve`: a checkpoint behind an HTTP server with OpenAI's interface.

use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;

use firebox_console::numbers::{bytes, counted};
use firebox_model::cache::CacheShape;
use firebox_model::config::{FeedForwardKind, ModelConfig};
use firebox_model::generate::{DraftTokens, Options, least_blocks};
use firebox_runtime::memory;
use firebox_serve::http::{self, App, Loading, Outcome};
use firebox_serve::job::Submit;
use firebox_serve::lifecycle::{Lifecycle, Phase};
use firebox_serve::metrics::{Build, Metrics};
use firebox_serve::pictures::{PictureInput, PictureRoom};
use firebox_serve::scheduler::Scheduler;
use firebox_serve::served::Served;

use crate::InferError;
use crate::engine::Engine;
use crate::generate::{Draft, Speculation};
use crate::pictures::PictureReader;
use crate::replicas::Parent;

/// Without another limit, the cache takes this share of the machine's memory at most.
const CACHE_SHARE: u64 = 4;

/// How a checkpoint is served.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Host name or address to listen on.
    pub host: String,
    /// Port to listen on; 0 takes a free one.
    pub port: u16,
    /// Name of the model; `None` for that of the checkpoint's folder.
    pub name: Option<String>,
    /// The most sequences at once.
    pub sequences: usize,
    /// The most tokens of prompts that a step reads.
    pub step_tokens: usize,
    /// The most bytes of keys and values; `None` for as many as all sequences can take, but no more than a quarter of the
    /// machine's memory, which replicas share.
    pub cache_bytes: Option<u64>,
    /// Tokens of a block of the cache.
    pub block_tokens: usize,
    /// The most sequences that wait.
    pub queue: usize,
    /// How clients are treated.
    pub http: http::Options,
    /// The folder of pictures that requests may name; `None` where they may name none.
    pub image_folder: Option<PathBuf>,
    /// The most pictures of a request.
    pub pictures: usize,
    /// The most bytes of the pictures of all requests that wait.
    pub picture_bytes: u64,
    /// The process that this one is a replica of.
    pub parent: Option<Parent>,
}

impl ServeOptions {
    /// Blocks of the cache.
    fn blocks(&self, config: &ModelConfig) -> Result<usize, InferError> {
        if self.block_tokens > config.context_length {
            return Err(InferError::BlockTooLarge {
                block: self.block_tokens,
                context: config.context_length,
            });
        }
        let block = (CacheShape::from(config).token_bytes() * self.block_tokens) as u64;
        let least = least_blocks(config.context_length, self.block_tokens);
        let all = least.saturating_mul(self.sequences);
        let Some(given) = self.cache_bytes else {
            let replicas = self
                .parent
                .as_ref()
                .map_or(1, |parent| parent.replicas as u64);
            let share = memory::installed().map_or(u64::MAX, |all| all / CACHE_SHARE / replicas);
            return Ok(all.min((share / block) as usize).max(least));
        };
        if let Some(installed) = memory::installed().filter(|&installed| given > installed) {
            return Err(InferError::CacheTooLarge { given, installed });
        }
        match (given / block) as usize {
            blocks if blocks >= least => Ok(blocks),
            _ => Err(InferError::CacheTooSmall {
                given,
                least: least as u64 * block,
                context: config.context_length,
            }),
        }
    }
}

/// A listener on host and port.
///
/// # Errors
///
/// When there is no such host, or the port is in use.
pub fn listen(host: &str, port: u16) -> Result<TcpListener, InferError> {
    let failed = |error| InferError::Listen {
        address: format!("{host}:{port}"),
        error,
    };
    let addresses = (host, port).to_socket_addrs();
    let addresses: Vec<SocketAddr> = addresses.map_err(failed)?.collect();
    TcpListener::bind(&addresses[..]).map_err(failed)
}

/// Takes the port of a server, and tells clients that the model is being loaded.
///
/// # Errors
///
/// When the port cannot be taken.
pub fn loading(options: &ServeOptions) -> Result<Loading, InferError> {
    let listener = listen(&options.host, options.port)?;
    Loading::begin(listener, options.http.clone()).map_err(InferError::Serve)
}

/// Serves an opened checkpoint, of which the user gave `path`, until the process is told to end, on the listener that
/// `loading` holds.
///
/// # Errors
///
/// When the cache is too small for one text, or requests had to be ended unanswered.
pub fn serve(
    engine: &Engine,
    path: &Path,
    speculation: &Speculation,
    options: &ServeOptions,
    loading: Loading,
) -> Result<(), InferError> {
    let listener = || Ok(loading.end());
    serve_until(
        engine,
        path,
        speculation,
        options,
        listener,
        |address, lifecycle| {
            if let Some(parent) = &options.parent {
                parent.ends(lifecycle);
                parent.tell(address);
            }
        },
    )
}

/// Serves an opened checkpoint while `work` is done, on a thread of its own, with the server's address.
///
/// # Errors
///
/// As [`serve`], and what the work says.
pub fn serve_while<T: Send>(
    engine: &Engine,
    path: &Path,
    speculation: &Speculation,
    options: &ServeOptions,
    work: impl FnOnce(SocketAddr) -> Result<T, InferError> + Send,
) -> Result<T, InferError> {
    let (begun, begins) = mpsc::channel::<(SocketAddr, Lifecycle)>();
    thread::scope(|scope| {
        let working = scope.spawn(move || {
            let (address, lifecycle) = begins.recv().ok()?;
            // Also if the work panics.
            let _ends = Ends(lifecycle, Phase::Draining);
            Some(work(address))
        });
        let served = serve_until(
            engine,
            path,
            speculation,
            options,
            || listen(&options.host, options.port),
            move |address, lifecycle| {
                // The other thread waits for it.
                let _ = begun.send((address, lifecycle.clone()));
            },
        );
        match working.join() {
            Ok(Some(done)) => done.and_then(|done| served.map(|()| done)),
            Ok(None) => served.and(Err(InferError::Unanswered)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Serves until the process or the server's lifecycle is told to end. `listener` is called when all is ready for requests, and
/// `begun` when they are accepted.
fn serve_until(
    engine: &Engine,
    path: &Path,
    speculation: &Speculation,
    options: &ServeOptions,
    listener: impl FnOnce() -> Result<TcpListener, InferError>,
    begun: impl FnOnce(SocketAddr, &Lifecycle) + Send,
) -> Result<(), InferError> {
    let config = engine.model.config();
    let blocks = options.blocks(config)?;
    let name = options.name.clone().unwrap_or_else(|| name_of(path));
    let (dtype, precision) = (
        engine.dtype.to_string(),
        engine.model.precision().to_string(),
    );
    let version = env!("CARGO_PKG_VERSION");
    let mut served = Served::new(
        &*name,
        engine.tokenizer.clone(),
        config.context_length,
        config.vocab_size,
        &[version, &engine.device, &dtype, &precision],
    )?;
    served.pictures = picture_input(engine, speculation, options)?;
    let sees = served.pictures.is_some();
    let build = Build {
        version,
        device: &engine.device,
        dtype: &dtype,
        model: &name,
    };
    let draft_tokens = match (&speculation.draft, speculation.draft_tokens) {
        (Draft::None, _) | (_, DraftTokens::Auto) => 0,
        (_, DraftTokens::Fixed(tokens)) => tokens,
    };
    let metrics = Arc::new(Metrics::new(build, &mixtures(config), draft_tokens));
    let scheduler = Scheduler::new(options.queue);
    let app = App::new(
        Arc::new(served),
        metrics.clone(),
        Arc::new(scheduler.clone()),
        options.http.clone(),
    );
    let app = Arc::new(app.map_err(InferError::Serve)?);
    let listener = listener()?;
    let address = listener.local_addr().map_err(InferError::Serve)?;

    let network = &mut *engine.network();
    let steps = Options {
        kept: options.sequences,
        step_tokens: options.step_tokens,
        blocks: Some(blocks),
        block_tokens: options.block_tokens,
        counts_experts: config.moe.is_some(),
        ..speculation.options(
            engine.tokenizer.eos_ids(),
            options.sequences,
            network.stages(),
        )
    };
    let lifecycle = app.lifecycle().clone();
    let of_begun = lifecycle.clone();
    let begun = move || {
        tracing::info!(
            "up to {} sequences at once, with {} of keys and values",
            options.sequences,
            bytes((blocks * options.block_tokens * CacheShape::from(config).token_bytes()) as u128)
        );
        if let Some(vision) = config.vision.as_ref().filter(|_| sees) {
            let layers = config
                .layers
                .iter()
                .filter(|layer| layer.is_cross())
                .count();
            let keys = layers * vision.max_tiles * vision.positions();
            let values = 2 * keys * config.kv_heads * config.head_dim;
            tracing::info!(
                "requests may have up to {}, of which each takes {} besides while it is seen",
                counted(options.pictures as u128, "picture"),
                bytes(values as u128 * size_of::<f32>() as u128)
            );
        }
        tracing::info!("serving {name} at http://{address}");
        begun(address, &of_begun);
    };
    let outcome = thread::scope(|scope| {
        let network_side = || {
            // Also if this thread panics.
            let _ends = Aborts(scheduler.clone());
            http::serve(listener, app, begun)
        };
        let named = thread::Builder::new().name("http".to_owned());
        let network_side = match named.spawn_scoped(scope, network_side) {
            Ok(network_side) => network_side,
            Err(error) => return Ok(Err(error)),
        };
        // Also if a step panics: then the other thread ends, and the panic goes on.
        let ends = Ends(lifecycle, Phase::Stopping);
        scheduler.run(network, steps, &metrics);
        drop(ends);
        network_side.join()
    });
    match outcome {
        Ok(Ok(Outcome::Drained)) => Ok(()),
        Ok(Ok(Outcome::Stopped)) => Err(InferError::Unanswered),
        Ok(Err(error)) => Err(InferError::Serve(error)),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// How the model takes pictures; `None` if it sees none, or none with this draft.
fn picture_input(
    engine: &Engine,
    speculation: &Speculation,
    options: &ServeOptions,
) -> Result<Option<PictureInput>, InferError> {
    let config = engine.model.config();
    let Some(image_token) = config.image_token() else {
        return match options.image_folder {
            None => Ok(None),
            Some(_) => Err(InferError::Blind {
                flag: "--image-folder",
                folder: engine.folder.clone(),
            }),
        };
    };
    if let Draft::Model(_) = &speculation.draft {
        tracing::warn!("the draft model sees no pictures, so requests with pictures are refused");
        return Ok(None);
    }
    let folder = options.image_folder.as_ref().map(|path| {
        let whole = path.canonicalize();
        let whole = whole.map_err(|_| InferError::Missing {
            option: "--image-folder",
            path: path.clone(),
        })?;
        match whole.is_dir() {
            true => Ok(whole),
            false => Err(InferError::NotAFolder { path: path.clone() }),
        }
    });
    Ok(Some(PictureInput {
        reader: Box::new(PictureReader::new(&engine.folder, engine.model.config())?),
        image_token,
        image_text: engine.tokenizer.special_text(image_token),
        folder: folder.transpose()?,
        most: options.pictures,
        room: PictureRoom::new(options.picture_bytes),
    }))
}

/// Brings a server to a phase when it is dropped.
struct Ends(Lifecycle, Phase);

impl Drop for Ends {
    fn drop(&mut self) {
        // One that has drained is at its end already.
        if self.0.phase() == Phase::Ready || self.0.open() > 0 {
            self.0.advance(self.1);
        }
    }
}

/// Ends the steps of a scheduler.
struct Aborts(Scheduler);

impl Drop for Aborts {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The number of each mixture layer, and of its experts.
fn mixtures(config: &ModelConfig) -> Vec<(usize, usize)> {
    let experts = config.moe.as_ref().map_or(0, |moe| moe.experts.count);
    let layers = config.layers.iter().enumerate();
    let mixtures = layers.filter(|(_, layer)| matches!(layer.feed_forward, FeedForwardKind::Moe));
    mixtures.map(|(number, _)| (number, experts)).collect()
}

/// The last part of a path, such as `quickstart` of `runs/quickstart`.
fn name_of(path: &Path) -> String {
    let whole = path.canonicalize();
    let whole = whole.as_deref().unwrap_or(path);
    let name = whole.file_name().unwrap_or(whole.as_os_str());
    name.to_string_lossy().into_owned()
}
