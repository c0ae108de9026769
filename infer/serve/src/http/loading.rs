//! Before there is a model: every request is told that it is being loaded.

use std::io;
use std::net::TcpListener;
use std::thread::{self, JoinHandle};

use axum::Router;
use axum::http::header::{CONNECTION, HeaderValue};
use axum::middleware::{from_fn_with_state, map_response};
use axum::response::Response;
use axum::routing::get;

use super::connection::{AtSignal, Site, run};
use super::guard::{self, Guard};
use super::{Options, respond, with_path};
use crate::error::ApiError;
use crate::lifecycle::{Lifecycle, Phase};

/// A listener whose requests are answered with 503, `loading`, on a thread of its own, until a server takes it over. So clients
/// and probes know from the first second that the server will be there.
#[derive(Debug)]
pub struct Loading {
    listener: Option<TcpListener>,
    lifecycle: Lifecycle,
    thread: Option<JoinHandle<()>>,
}

impl Loading {
    /// Begins to answer.
    ///
    /// # Errors
    ///
    /// When the listener cannot be used twice, or the system gives no thread.
    pub fn begin(listener: TcpListener, options: Options) -> io::Result<Self> {
        let lifecycle = Lifecycle::default();
        let site = Site {
            router: router(&options),
            lifecycle: lifecycle.clone(),
            options,
            signals: AtSignal::Exit, // there is nothing to finish
        };
        let own = listener.try_clone()?;
        let named = thread::Builder::new().name("loading".to_owned());
        let thread = named.spawn(move || {
            if let Err(error) = run(own, site, || ()) {
                tracing::warn!("requests wait for an answer until the model is loaded: {error}");
            }
        })?;
        Ok(Self {
            listener: Some(listener),
            lifecycle,
            thread: Some(thread),
        })
    }

    /// Gives the listener back. Clients that connect from now on wait for the server. Replies that are being sent are sent whole,
    /// within a second; connections that have not asked for anything yet are closed.
    pub fn end(mut self) -> TcpListener {
        self.listener.take().expect("it is given back once")
    }
}

impl Drop for Loading {
    fn drop(&mut self) {
        self.lifecycle.advance(Phase::Stopping);
        if let Some(thread) = self.thread.take() {
            // A panic of it has been told.
            let _ = thread.join();
        }
    }
}

fn router(options: &Options) -> Router {
    let health = || async { respond::health(Err(("loading", ApiError::Loading))) };
    let mut router = Router::new();
    for path in ["/health", "/v1/health"] {
        router = with_path(router, path, get(health));
    }
    let guard = Guard::new(options);
    router
        .fallback(|| async { ApiError::Loading })
        .layer(from_fn_with_state(guard, guard::guard))
        .layer(map_response(closing))
}

/// A client that keeps its connections has to know that this one ends with the loading.
async fn closing(mut response: Response) -> Response {
    let close = HeaderValue::from_static("close");
    response.headers_mut().insert(CONNECTION, close);
    response
}

#[cfg(test)]
mod tests {
    use std::io::{ErrorKind, Read, Write};
    use std::net::{SocketAddr, TcpStream};
    use std::time::{Duration, Instant};

    use super::*;
    use crate::testing::{Answer, Client, request};

    struct Place(SocketAddr);

    impl Client for Place {
        fn address(&self) -> SocketAddr {
            self.0
        }
    }

    fn loading(options: Options) -> (Loading, Place) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let place = Place(listener.local_addr().unwrap());
        (Loading::begin(listener, options).unwrap(), place)
    }

    #[test]
    fn every_request_is_told_to_come_again() {
        let (_loading, place) = loading(Options::default());
        for path in ["/health", "/v1/health/"] {
            let answer = place.ask(&format!("GET {path}"));
            assert_eq!(answer.status, 503);
            assert_eq!(answer.json()["status"], "loading");
            assert_eq!(answer.header("retry-after"), Some("5"));
            assert_eq!(answer.header("connection"), Some("close"));
        }
        for path in ["/v1/completions", "/v1/models", "/nothing", "/"] {
            let answer = place.post_text(path, "{}");
            assert_eq!(answer.error(), (503, "loading".to_owned(), None), "{path}");
            assert_eq!(answer.header("retry-after"), Some("5"));
        }
    }

    #[test]
    fn keys_are_asked_for_already() {
        let key = Options {
            api_key: Some("secret".to_owned()),
            ..Options::default()
        };
        let (_loading, place) = loading(key);
        assert_eq!(place.ask("GET /v1/models").status, 401);
        assert_eq!(place.ask("GET /health").status, 503);
    }

    // A client that connects in between is served: the next accept has its connection, and what it has sent.
    #[test]
    fn the_listener_is_given_back() {
        let (loading, place) = loading(Options::default());
        let Place(address) = place;
        // One that says nothing, and one in the middle of a request, hold nothing up for long.
        let _silent = TcpStream::connect(address).unwrap();
        let mut slow = TcpStream::connect(address).unwrap();
        slow.write_all(b"POST /v1/completions HTTP/1.1\r\n")
            .unwrap();
        // What comes later is answered, so that both are accepted.
        assert_eq!(place.ask("GET /health").status, 503);
        let ends = Instant::now();
        let listener = loading.end();
        assert!(ends.elapsed() < Duration::from_secs(10));
        let mut next = TcpStream::connect(address).unwrap();
        next.write_all(request("/v1/completions", "{}").as_bytes())
            .unwrap();
        listener.set_nonblocking(false).unwrap();
        let (mut accepted, _) = listener.accept().unwrap();
        assert_eq!(accepted.peer_addr().unwrap(), next.local_addr().unwrap());
        let mut sent = [0; 4096];
        assert!(accepted.read(&mut sent).unwrap() > 0);
        accepted
            .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok")
            .unwrap();
        drop(accepted);
        let timeout = Some(Duration::from_secs(30));
        next.set_read_timeout(timeout).unwrap();
        assert_eq!(Answer::read(&mut next).status, 200);
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), ErrorKind::WouldBlock);
    }
}
