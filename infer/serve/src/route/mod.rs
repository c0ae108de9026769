//! One address in front of several servers of a model, which are its *replicas*.
//!
//! A request goes to a healthy replica that is not busier than others, and among those to the one that has seen the beginning
//! of its prompt before (`choice`). If that replica fails before its reply begins, another one gets the request; afterwards
//! the client is told (`reply`).

mod affinity;
mod choice;
mod client;
mod forward;
mod health;
mod metrics;
mod replica;
mod reply;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::io;
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use axum::Router;
use axum::extract::State;
use axum::middleware::from_fn_with_state;
use axum::response::Response;
use axum::routing::get;

use crate::error::ApiError;
use crate::http::connection::{AtSignal, Site, run};
use crate::http::guard::{self, Guard};
use crate::http::{Options, Outcome, respond, with_path};
use crate::lifecycle::{Lifecycle, Phase};
use choice::{Candidate, choose};
use metrics::Metrics;
pub use replica::{Address, AddressError};
use replica::{Held, Replica};

/// What all requests to the address share.
#[derive(Debug)]
pub struct Proxy {
    replicas: Vec<Arc<Replica>>,
    metrics: Metrics,
    lifecycle: Lifecycle,
    options: Options,
    /// Number of requests without a prompt so far: they take turns.
    turn: AtomicU64,
    /// Whether each replica has been asked whether it is healthy.
    has_asked: AtomicBool,
}

impl Proxy {
    /// A proxy in front of servers. One that is given twice counts once.
    pub fn new(mut addresses: Vec<Address>, options: Options) -> Self {
        let mut known = HashSet::new();
        addresses.retain(|address| known.insert(address.clone()));
        let replicas = addresses.into_iter().map(Replica::new).map(Arc::new);
        Self {
            replicas: replicas.collect(),
            metrics: Metrics::new(),
            lifecycle: Lifecycle::default(),
            options,
            turn: AtomicU64::default(),
            has_asked: AtomicBool::default(),
        }
    }

    /// Where the proxy stands, and how it is told to end.
    pub fn lifecycle(&self) -> &Lifecycle {
        &self.lifecycle
    }

    /// What is wrong where no replica is healthy, or not known to be yet.
    fn without_replica(&self) -> ApiError {
        match self.has_asked.load(Ordering::Relaxed) {
            true => ApiError::Unavailable,
            false => ApiError::Loading,
        }
    }

    /// A replica for a request with this key of its prompt, other than `failed`; `None` when no other one is healthy.
    fn choose(&self, key: Option<u64>, failed: Option<&Replica>) -> Option<Held> {
        let is_other = |replica: &&Arc<Replica>| {
            failed.is_none_or(|failed| !std::ptr::eq(failed, Arc::as_ptr(replica)))
        };
        let healthy: Vec<&Arc<Replica>> = self
            .replicas
            .iter()
            .filter(|replica| replica.is_healthy())
            .filter(is_other)
            .collect();
        let candidates = healthy.iter().map(|replica| Candidate {
            name: replica.address().as_str(),
            open: replica.open(),
        });
        let candidates: Vec<Candidate<'_>> = candidates.collect();
        let turn = || self.turn.fetch_add(1, Ordering::Relaxed);
        let chosen = choose(&candidates, key, turn)?;
        Some(Held::new(healthy[chosen].clone()))
    }
}

/// Serves until the process is told to end, as [`crate::http::serve`] does. `begun` is called when connections are accepted and
/// the health of each replica is known.
///
/// # Errors
///
/// When the system gives no runtime, or the listener cannot be used.
pub fn serve(
    listener: TcpListener,
    proxy: Arc<Proxy>,
    begun: impl FnOnce() + Send + 'static,
) -> io::Result<Outcome> {
    let site = Site {
        router: router(proxy.clone()),
        lifecycle: proxy.lifecycle.clone(),
        options: proxy.options.clone(),
        signals: AtSignal::Drain,
    };
    run(listener, site, || {
        tokio::spawn(async move {
            let checks = proxy.replicas.iter().cloned().map(health::check);
            let checks: Vec<_> = checks.map(tokio::spawn).collect();
            for check in checks {
                // One that panics leaves its replica unhealthy.
                let _ = check.await;
            }
            proxy.has_asked.store(true, Ordering::Relaxed);
            for replica in &proxy.replicas {
                tokio::spawn(health::watch(replica.clone()));
            }
            begun();
        });
    })
}

fn router(proxy: Arc<Proxy>) -> Router {
    let mut router = Router::new();
    for path in ["/health", "/v1/health"] {
        router = with_path(router, path, get(healthy));
    }
    router = with_path(router, "/metrics", get(metrics::gathered));
    let guard = Guard::new(&proxy.options);
    router
        .fallback(forward::forward)
        .layer(from_fn_with_state(guard, guard::guard))
        .with_state(proxy)
}

/// `/health`
async fn healthy(State(proxy): State<Arc<Proxy>>) -> Response {
    let is_any = proxy.replicas.iter().any(|replica| replica.is_healthy());
    respond::health(match proxy.lifecycle.phase() {
        Phase::Ready if is_any => Ok(()),
        Phase::Ready => {
            let error = proxy.without_replica();
            Err((error.code(), error))
        }
        Phase::Draining | Phase::Stopping => Err(("draining", ApiError::ShuttingDown)),
    })
}
