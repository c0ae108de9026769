//! A client of a server with this interface: requests over connections that are kept, and the events of streams.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Bytes;
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use axum::http::{Method, Request, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::route::Address;

/// How long a connection may take to be accepted.
const CONNECT: Duration = Duration::from_secs(5);

/// The connection of a request, which ends when this is dropped: a server so sees that its client is gone.
#[derive(Debug)]
pub struct Connection(JoinHandle<()>);

impl Drop for Connection {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A new connection.
///
/// # Errors
///
/// When nobody accepts it.
pub(crate) async fn connect(
    address: &Address,
) -> io::Result<(SendRequest<Full<Bytes>>, Connection)> {
    let stream = timeout(CONNECT, TcpStream::connect(address.as_str())).await??;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream))
        .await
        .map_err(io::Error::other)?;
    let connection = tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!("a connection to a server ended: {error}");
        }
    });
    Ok((sender, Connection(connection)))
}

/// Asks one server. Clones share its connections.
#[derive(Debug, Clone)]
pub struct Client(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    address: Address,
    headers: HeaderMap,
    /// Connections on which nothing is under way.
    idle: Mutex<Vec<Link>>,
}

#[derive(Debug)]
struct Link {
    sender: SendRequest<Full<Bytes>>,
    _connection: Connection,
}

impl Client {
    /// Of a server, which is shown a key if there is one.
    ///
    /// # Errors
    ///
    /// When the key has characters that no header may have.
    pub fn new(address: Address, key: Option<&str>) -> io::Result<Self> {
        let mut headers = HeaderMap::new();
        let host = HeaderValue::from_str(address.as_str()).map_err(io::Error::other)?;
        headers.insert(HOST, host);
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(key) = key {
            let key = HeaderValue::from_str(&format!("Bearer {key}"));
            headers.insert(AUTHORIZATION, key.map_err(io::Error::other)?);
        }
        Ok(Self(Arc::new(Shared {
            address,
            headers,
            idle: Mutex::default(),
        })))
    }

    /// Where the server is.
    pub fn address(&self) -> &Address {
        &self.0.address
    }

    /// Asks for a path.
    ///
    /// # Errors
    ///
    /// When there is no connection, or it ends early.
    pub async fn get(&self, path: &str) -> io::Result<Reply> {
        self.send(Method::GET, path, Bytes::new()).await
    }

    /// Sends a body to a path.
    ///
    /// # Errors
    ///
    /// When there is no connection, or it ends early.
    pub async fn post(&self, path: &str, body: impl Into<Bytes>) -> io::Result<Reply> {
        self.send(Method::POST, path, body.into()).await
    }

    async fn send(&self, method: Method, path: &str, body: Bytes) -> io::Result<Reply> {
        let path = Uri::try_from(path).map_err(io::Error::other)?;
        loop {
            let kept = self.idle().pop();
            let is_kept = kept.is_some();
            let mut link = match kept {
                Some(link) => link,
                None => {
                    let (sender, connection) = connect(&self.0.address).await?;
                    Link {
                        sender,
                        _connection: connection,
                    }
                }
            };
            let mut request = Request::new(Full::new(body.clone()));
            *request.method_mut() = method.clone();
            *request.uri_mut() = path.clone();
            *request.headers_mut() = self.0.headers.clone();
            // A kept one may have been closed by the server meanwhile.
            match link.sender.ready().await {
                Err(_) if is_kept => continue,
                ready => ready.map_err(io::Error::other)?,
            }
            match link.sender.try_send_request(request).await {
                Ok(reply) => return Ok(Reply::new(self.clone(), link, reply)),
                Err(mut error) => {
                    let is_unsent = error.take_message().is_some();
                    let error = error.into_error();
                    // Some servers close a connection after a stream and do not say so, which is seen only now.
                    let is_unanswered = is_unsent || error.is_incomplete_message();
                    if !(is_kept && is_unanswered) {
                        return Err(io::Error::other(error));
                    }
                }
            }
        }
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Link>> {
        self.0.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reply whose body comes. Dropped before its end, it takes its connection along.
#[derive(Debug)]
pub struct Reply {
    client: Client,
    link: Link,
    status: u16,
    headers: HeaderMap,
    body: Incoming,
    events: EventReader,
}

impl Reply {
    fn new(client: Client, link: Link, reply: axum::http::Response<Incoming>) -> Self {
        let (head, body) = reply.into_parts();
        Self {
            client,
            link,
            status: head.status.as_u16(),
            headers: head.headers,
            body,
            events: EventReader::default(),
        }
    }

    /// The status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// A header, if it is there and text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether the body is a stream of events.
    pub fn is_stream(&self) -> bool {
        let kind = self.header("content-type");
        kind.is_some_and(|kind| kind.starts_with("text/event-stream"))
    }

    /// Reads the whole body.
    ///
    /// # Errors
    ///
    /// When it ends early.
    pub async fn whole(mut self) -> io::Result<Vec<u8>> {
        let mut whole = Vec::new();
        while let Some(bytes) = self.bytes().await? {
            whole.extend_from_slice(&bytes);
        }
        self.keep();
        Ok(whole)
    }

    /// The data of the stream's next event; `None` at its end, after which the connection can be [kept](Self::keep).
    ///
    /// # Errors
    ///
    /// When the stream ends early, or is not UTF-8.
    pub async fn event(&mut self) -> io::Result<Option<String>> {
        loop {
            if let Some(event) = self.events.next() {
                let text = String::from_utf8(event);
                return text.map(Some).map_err(io::Error::other);
            }
            match self.bytes().await? {
                Some(bytes) => self.events.push(&bytes),
                None => return Ok(None),
            }
        }
    }

    /// Gives the connection back for further requests; the body must have been read to its end.
    pub fn keep(self) {
        self.client.idle().push(self.link);
    }

    async fn bytes(&mut self) -> io::Result<Option<Bytes>> {
        match self.body.frame().await {
            // A trailer is no data.
            Some(Ok(frame)) => Ok(Some(frame.into_data().unwrap_or_default())),
            Some(Err(error)) => Err(io::Error::other(error)),
            None => Ok(None),
        }
    }
}

/// Finds events in the bytes of a stream: the `data` of each, other fields and comments being of no account here.
#[derive(Debug, Default)]
struct EventReader {
    buffer: Vec<u8>,
    /// What of the buffer was read.
    read: usize,
    data: Option<Vec<u8>>,
}

impl EventReader {
    fn push(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.read);
        self.read = 0;
        self.buffer.extend_from_slice(bytes);
    }

    /// The next event that is whole.
    fn next(&mut self) -> Option<Vec<u8>> {
        loop {
            let rest = &self.buffer[self.read..];
            let end = rest.iter().position(|&byte| byte == b'\n')?;
            let line = rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]);
            if let Some(data) = line.strip_prefix(b"data:") {
                let data = data.strip_prefix(b" ").unwrap_or(data);
                match &mut self.data {
                    Some(begun) => {
                        begun.push(b'\n');
                        begun.extend_from_slice(data);
                    }
                    None => self.data = Some(data.to_vec()),
                }
            }
            let is_end = line.is_empty();
            self.read += end + 1;
            if is_end && let Some(data) = self.data.take() {
                return Some(data);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;

    use serde_json::{Value, json};

    use super::*;
    use crate::testing::{Script, Server};

    fn run<T>(work: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(work)
    }

    #[test]
    fn events_are_found_however_they_come() {
        let stream = b": a comment\ndata: a\n\nevent: x\r\ndata:b\r\ndata: c\r\n\r\n\n\ndata: d\n\ndata: rest";
        for size in 1..stream.len() {
            let mut reader = EventReader::default();
            let mut events = Vec::new();
            for piece in stream.chunks(size) {
                reader.push(piece);
                while let Some(event) = reader.next() {
                    events.push(String::from_utf8(event).unwrap());
                }
            }
            assert_eq!(events, ["a", "b\nc", "d"], "{size}");
        }
    }

    #[test]
    fn connections_are_kept_and_closed_ones_replaced() {
        let server = Server::scripted(Script::default());
        let address: Address = server.address.to_string().parse().unwrap();
        let client = Client::new(address, Some("key")).unwrap();
        run(async {
            let body = json!({ "prompt": "a", "max_tokens": 3, "stream": true }).to_string();
            let mut reply = client.post("/v1/completions", body).await.unwrap();
            assert!(reply.is_stream() && reply.status() == 200);
            let mut events = Vec::new();
            while let Some(event) = reply.event().await.unwrap() {
                events.push(event);
            }
            reply.keep();
            assert_eq!(events.pop().as_deref(), Some("[DONE]"));
            let chunk: Value = serde_json::from_str(&events[0]).unwrap();
            assert_eq!(chunk["choices"][0]["text"], "a");
            assert_eq!(client.idle().len(), 1);
            let whole = client.get("/version").await.unwrap().whole().await.unwrap();
            assert!(whole.starts_with(b"{\"version\""));
            assert_eq!(client.idle().len(), 1);
            // As a server closes it.
            client.idle()[0]._connection.0.abort();
            tokio::task::yield_now().await;
            assert_eq!(client.get("/health").await.unwrap().status(), 200);
        });
    }

    #[test]
    fn a_kept_connection_that_ends_without_an_answer_is_replaced() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address: Address = listener.local_addr().unwrap().to_string().parse().unwrap();
        let server = std::thread::spawn(move || {
            // Of each connection, the first request is answered, and the second one is read.
            for requests in [2, 1] {
                let (mut stream, _) = listener.accept().unwrap();
                for request in 0..requests {
                    assert!(stream.read(&mut [0; 1000]).unwrap() > 0);
                    if request == 0 {
                        let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                        stream.write_all(answer).unwrap();
                    }
                }
            }
            // A connection that nobody has kept.
            let (mut stream, _) = listener.accept().unwrap();
            assert!(stream.read(&mut [0; 1000]).unwrap() > 0);
        });
        let client = Client::new(address, None).unwrap();
        run(async {
            for _ in 0..2 {
                let whole = client.get("/health").await.unwrap().whole().await;
                assert_eq!(whole.unwrap(), b"ok");
            }
            client.idle().clear();
            assert!(client.get("/health").await.is_err());
        });
        server.join().unwrap();
    }

    #[test]
    fn nobody_listens() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address: Address = listener.local_addr().unwrap().to_string().parse().unwrap();
        drop(listener);
        let client = Client::new(address.clone(), None).unwrap();
        let error = run(client.get("/health")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
        assert!(Client::new(address, Some("a\nb")).is_err());
    }
}
