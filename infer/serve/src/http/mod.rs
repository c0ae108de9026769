//! HTTP: paths, keys, bodies and connections.

pub(crate) mod body;
pub(crate) mod connection;
mod generate;
pub(crate) mod guard;
mod info;
mod loading;
pub(crate) mod respond;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, get, post};

use crate::error::ApiError;
use crate::job::Submit;
use crate::lifecycle::Lifecycle;
use crate::metrics::Metrics;
use crate::served::Served;

pub use connection::{Outcome, serve};
use guard::Guard;
pub use loading::Loading;

/// So many unknown fields of requests are named in the log.
const NAMED: usize = 100;

/// How a server treats its clients.
#[derive(Debug, Clone)]
pub struct Options {
    /// What clients must send as `authorization: Bearer KEY`; `None` lets everybody in.
    pub api_key: Option<String>,
    /// The most bytes of a request's body.
    pub body_limit: usize,
    /// How long a request's headers, and then its body, may take to come.
    pub read_timeout: Duration,
    /// How long a client may take no byte of a reply before it counts as gone.
    pub write_timeout: Duration,
    /// How long requests may take after the signal to end; `None` for as long as they take.
    pub drain_timeout: Option<Duration>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            api_key: None,
            body_limit: 32 << 20,
            read_timeout: Duration::from_secs(30),
            write_timeout: Duration::from_secs(60),
            drain_timeout: None,
        }
    }
}

/// What all requests share.
#[derive(Debug)]
pub struct App {
    served: Arc<Served>,
    metrics: Arc<Metrics>,
    scheduler: Arc<dyn Submit>,
    lifecycle: Lifecycle,
    options: Options,
    /// Threads for text, so that a long one stops neither the network nor a step of the model.
    text_threads: rayon::ThreadPool,
    /// Fields that the log has named.
    unknown: Mutex<BTreeSet<String>>,
}

impl App {
    /// A server of a model, whose jobs go to `scheduler`.
    ///
    /// # Errors
    ///
    /// When the system gives no threads.
    pub fn new(
        served: Arc<Served>,
        metrics: Arc<Metrics>,
        scheduler: Arc<dyn Submit>,
        options: Options,
    ) -> std::io::Result<Self> {
        let threads = rayon::ThreadPoolBuilder::new()
            .num_threads(2)
            .thread_name(|index| format!("text-{index}"))
            .build();
        Ok(Self {
            text_threads: threads.map_err(std::io::Error::other)?,
            lifecycle: Lifecycle::default(),
            unknown: Mutex::default(),
            served,
            metrics,
            scheduler,
            options,
        })
    }

    /// Where the server stands, and how it is told to end.
    pub fn lifecycle(&self) -> &Lifecycle {
        &self.lifecycle
    }

    /// Does work with text on threads of its own. A panic of it is a fault.
    async fn with_text<T: Send + 'static>(
        self: Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let done = tokio::task::spawn_blocking(move || {
            let app = &*self;
            app.text_threads.install(|| work(app))
        });
        done.await.unwrap_or_else(|panic| {
            tracing::error!("a request could not be read: {panic}");
            Err(ApiError::Internal)
        })
    }

    /// Names fields in the log that are ignored, each once.
    fn ignore(&self, unknown: &[String]) {
        for name in unknown {
            let mut named = self
                .unknown
                .lock()
                .unwrap_or_else(|error| error.into_inner());
            if named.len() < NAMED && named.insert(name.clone()) {
                tracing::info!("requests have a field {name:?}, which is ignored");
            }
        }
    }
}

/// All paths.
pub fn router(app: Arc<App>) -> Router {
    let mut router = Router::new();
    let mut add = |path: &str, methods| {
        router = with_path(std::mem::take(&mut router), path, methods);
    };
    add("/", get(info::page));
    for path in ["/health", "/v1/health"] {
        add(path, get(info::health));
    }
    add("/metrics", get(info::metrics));
    add("/version", get(info::version));
    add("/v1/models", get(info::models));
    add("/v1/models/{*id}", get(info::model));
    add("/tokenizer_info", get(info::tokenizer));
    add("/tokenize", post(info::tokenize));
    add("/detokenize", post(info::detokenize));
    add("/v1/completions", post(generate::completions));
    add("/v1/chat/completions", post(generate::chat));
    let guard = Guard::new(&app.options);
    router
        .fallback(guard::not_found)
        .layer(from_fn_with_state(guard, guard::guard))
        .with_state(app)
}

/// A path with its methods, whose others are refused. It may end in a slash; those of rests do already.
pub(crate) fn with_path<S: Clone + Send + Sync + 'static>(
    router: Router<S>,
    path: &str,
    methods: MethodRouter<S>,
) -> Router<S> {
    let methods = methods.fallback(guard::method_not_allowed);
    let added = router.route(path, methods.clone());
    match path.ends_with(['/', '}']) {
        true => added,
        false => added.route(&format!("{path}/"), methods),
    }
}
