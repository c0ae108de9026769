//! `cargo infer serve --route` and `--replicas`: one address in front of several servers.

use std::net::TcpListener;
use std::process::Command;
use std::sync::{Arc, mpsc};
use std::thread;

use firebox_console::numbers::counted;
use firebox_serve::http::{self, Loading, Outcome};
use firebox_serve::lifecycle::Phase;
use firebox_serve::route::{self, Address, Proxy};

use crate::InferError;
use crate::replicas::Replicas;
use crate::serve::listen;

/// Where clients find the servers.
#[derive(Debug, Clone)]
pub struct RouteOptions {
    /// Host name or address to listen on.
    pub host: String,
    /// Port to listen on; 0 takes a free one.
    pub port: u16,
    /// How clients are treated.
    pub http: http::Options,
}

/// Stands in front of running servers until the process is told to end.
///
/// # Errors
///
/// When the port cannot be taken, or requests had to be ended unanswered.
pub fn route(addresses: Vec<Address>, options: &RouteOptions) -> Result<(), InferError> {
    let what = counted(addresses.len() as u128, "server");
    let listener = listen(&options.host, options.port)?;
    stand(what, Proxy::new(addresses, options.http.clone()), listener)
}

/// Starts servers, stands in front of them until the process is told to end, and ends them.
///
/// # Errors
///
/// When a server does not start, the port cannot be taken, requests had to be ended unanswered, or all servers have ended.
pub fn serve_replicas(commands: Vec<Command>, options: &RouteOptions) -> Result<(), InferError> {
    // A port that is in use shows before a model is loaded.
    let listener = listen(&options.host, options.port)?;
    let loading = Loading::begin(listener, options.http.clone()).map_err(InferError::Serve)?;
    let (replicas, addresses) = Replicas::start(commands)?;
    let what = counted(addresses.len() as u128, "replica");
    let proxy = Proxy::new(addresses, options.http.clone());
    let lifecycle = proxy.lifecycle().clone();
    thread::scope(|scope| {
        let (serves, ended) = mpsc::channel();
        let none_left = move || lifecycle.advance(Phase::Draining);
        let watching = scope.spawn(move || replicas.watch(&ended, none_left));
        let stood = stand(what, proxy, loading.end());
        drop::<mpsc::Sender<()>>(serves);
        match watching.join() {
            Ok(true) => stood,
            Ok(false) => stood.and(Err(InferError::ReplicasEnded)),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

/// Stands in front of `what`, until the process is told to end.
fn stand(what: String, proxy: Proxy, listener: TcpListener) -> Result<(), InferError> {
    let address = listener.local_addr().map_err(InferError::Serve)?;
    let begun = move || tracing::info!("serving {what} at http://{address}");
    match route::serve(listener, Arc::new(proxy), begun) {
        Ok(Outcome::Drained) => Ok(()),
        Ok(Outcome::Stopped) => Err(InferError::Unanswered),
        Err(error) => Err(InferError::Serve(error)),
    }
}
