//! Requests to replicas.
//!
//! Each has a connection of its own. A kept one might be closed by its server just when it is used, and would make a healthy
//! server look like one that has failed; a new one costs little beside a text.

use std::io;

use axum::body::Bytes;
use axum::extract::Request;
use axum::http::header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue};
use axum::http::response::Parts;
use axum::http::{Method, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;

use super::replica::Address;
pub use crate::client::Connection;
use crate::client::connect;

/// Headers that are about one connection, not about what goes over it.
const OF_CONNECTION: [HeaderName; 8] = [
    CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("te"),
    HeaderName::from_static("trailer"),
    HeaderName::from_static("transfer-encoding"),
    HeaderName::from_static("upgrade"),
    HeaderName::from_static("expect"),
];

/// A request as it goes to any replica.
#[derive(Debug, Clone)]
pub struct Outgoing {
    method: Method,
    /// Path and query.
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
}

impl Outgoing {
    /// A request without a body.
    pub fn get(path: &'static str) -> Self {
        Self {
            method: Method::GET,
            uri: Uri::from_static(path),
            headers: HeaderMap::new(),
            body: Bytes::new(),
        }
    }

    /// A client's request, without its body.
    pub fn of(request: &Request) -> Self {
        let path = request.uri().path_and_query();
        let mut headers = request.headers().clone();
        remove_connection(&mut headers);
        Self {
            method: request.method().clone(),
            uri: path.map_or_else(Uri::default, |path| path.clone().into()),
            headers,
            body: Bytes::new(),
        }
    }

    /// The same with another body.
    pub fn with_body(self, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        Self { body, ..self }
    }

    /// The same with another header, if there is a value for it.
    pub fn with_header(mut self, name: HeaderName, value: Option<HeaderValue>) -> Self {
        if let Some(value) = value {
            self.headers.insert(name, value);
        }
        self
    }

    /// Its body.
    pub fn body(&self) -> &Bytes {
        &self.body
    }

    fn to(&self, address: &Address) -> io::Result<Request<Full<Bytes>>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.uri.clone();
        *request.headers_mut() = self.headers.clone();
        let host = HeaderValue::from_str(address.as_str()).map_err(io::Error::other)?;
        request.headers_mut().insert(HOST, host);
        let close = HeaderValue::from_static("close");
        request.headers_mut().insert(CONNECTION, close);
        Ok(request)
    }
}

/// Removes what is about one connection alone, and what the connection's own `connection` header names.
fn remove_connection(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in OF_CONNECTION.iter().chain(&named) {
        headers.remove(name);
    }
}

/// A reply whose body comes.
#[derive(Debug)]
pub struct Reply {
    /// Status and headers.
    pub head: Parts,
    /// The body.
    pub body: Incoming,
    /// Must live as long as the body is read.
    pub connection: Connection,
}

impl Reply {
    /// Reads the body.
    ///
    /// # Errors
    ///
    /// When it ends early.
    pub async fn whole(self) -> io::Result<Bytes> {
        let whole = self.body.collect().await.map_err(io::Error::other)?;
        Ok(whole.to_bytes())
    }
}

/// Sends a request, and waits for status and headers of the reply.
///
/// # Errors
///
/// When there is no connection, or it ends early.
pub async fn send(address: &Address, outgoing: &Outgoing) -> io::Result<Reply> {
    let request = outgoing.to(address)?;
    let (mut sender, connection) = connect(address).await?;
    let reply = sender.send_request(request).await;
    let (mut head, body) = reply.map_err(io::Error::other)?.into_parts();
    remove_connection(&mut head.headers);
    Ok(Reply {
        head,
        body,
        connection,
    })
}
