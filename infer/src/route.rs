//! `cargo infer serve --route`: one address in front of several servers.

use std::sync::Arc;

use firebox_serve::http::{self, Outcome};
use firebox_serve::route::{self, Address, Proxy};

use crate::InferError;
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
    let proxy = Arc::new(Proxy::new(addresses, options.http.clone()));
    let listener = listen(&options.host, options.port)?;
    let address = listener.local_addr().map_err(InferError::Serve)?;
    let begun = move || tracing::info!("serving at http://{address}");
    match route::serve(listener, proxy, begun) {
        Ok(Outcome::Drained) => Ok(()),
        Ok(Outcome::Stopped) => Err(InferError::Unanswered),
        Err(error) => Err(InferError::Serve(error)),
    }
}
