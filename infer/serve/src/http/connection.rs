//! Connections, from the first one to the end of the server.

use std::future::poll_fn;
use std::io;
use std::net::TcpListener;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::mpsc::{Sender, channel};
use tokio_io_timeout::TimeoutStream;

use super::{App, Options, router};
use crate::error::ApiError;
use crate::lifecycle::{Lifecycle, Phase};

/// How long clients have to read the error that ends what they wait for.
const GRACE: Duration = Duration::from_secs(1);

/// Connections that may wait until they are accepted. A system drops what comes beyond, and those clients come again a second
/// later.
const BACKLOG: i32 = 4096;

/// When to look for connections again after one could not be accepted, for example since too many files are open.
const AGAIN: Duration = Duration::from_millis(50);

/// How a server has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Every request that was accepted has its answer.
    Drained,
    /// Some were ended with an error.
    Stopped,
}

/// What is behind the connections of a server, and how it ends.
#[derive(Debug)]
pub(crate) struct Site {
    /// All paths.
    pub router: Router,
    /// Where the server stands. Who answers requests ends them in [`Phase::Stopping`].
    pub lifecycle: Lifecycle,
    /// How clients are treated.
    pub options: Options,
    /// What SIGTERM and SIGINT do.
    pub signals: AtSignal,
}

/// What a site does when the process is told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AtSignal {
    /// It finishes what it has.
    Drain,
    /// It ends the process at once, with 128 and the signal's number, as a shell has it. Without a handler, process 1 of a
    /// container would not hear of a signal.
    Exit,
}

/// Serves until the process is told to end (SIGTERM or SIGINT) or [`App::lifecycle`] is, and what was accepted by then is
/// answered; a second signal, or the drain timeout, ends it early. `begun` is called when connections are accepted.
///
/// # Errors
///
/// When the system gives no runtime, or the listener cannot be used.
pub fn serve(listener: TcpListener, app: Arc<App>, begun: impl FnOnce()) -> io::Result<Outcome> {
    let site = Site {
        router: router(app.clone()),
        lifecycle: app.lifecycle.clone(),
        options: app.options.clone(),
        signals: AtSignal::Drain,
    };
    run(listener, site, || {
        tokio::spawn(async move {
            app.lifecycle.reached(Phase::Stopping).await;
            app.scheduler.abort();
        });
        begun();
    })
}

/// Serves a site to its end. `begun` is called on the runtime when connections are accepted.
///
/// # Errors
///
/// When the system gives no runtime, or the listener cannot be used.
pub(crate) fn run(listener: TcpListener, site: Site, begun: impl FnOnce()) -> io::Result<Outcome> {
    // Again: the standard library has asked for 128.
    SockRef::from(&listener).listen(BACKLOG)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .thread_name("blocking")
        .build()?;
    runtime.block_on(async {
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let lifecycle = site.lifecycle.clone();
        let drain_timeout = site.options.drain_timeout;
        let ending = match site.signals {
            AtSignal::Drain => tokio::spawn(end_on_signals(lifecycle.clone(), drain_timeout)),
            AtSignal::Exit => tokio::spawn(exit_on_signals()),
        };
        // Each connection has a sender, so that nothing is received after the last one.
        let (open, mut closed) = channel::<()>(1);
        let accepting = tokio::spawn(accept(listener, Arc::new(site), open));
        begun();
        let answered = async {
            lifecycle.drained().await;
            accepting.abort();
            closed.recv().await;
        };
        let stopped = async {
            lifecycle.reached(Phase::Stopping).await;
            tokio::time::sleep(GRACE).await;
        };
        tokio::select! {
            () = answered => (),
            () = stopped => (),
        }
        ending.abort();
        Ok(match lifecycle.phase() {
            Phase::Stopping => Outcome::Stopped,
            Phase::Ready | Phase::Draining => Outcome::Drained,
        })
    })
}

/// The first signal drains the server; a second one, or the timeout, stops it.
async fn end_on_signals(lifecycle: Lifecycle, drain_timeout: Option<Duration>) {
    let mut signals = match Signals::new() {
        Ok(signals) => signals,
        Err(error) => {
            tracing::warn!("signals will end the server at once: {error}");
            return;
        }
    };
    tokio::select! {
        _ = signals.next() => lifecycle.advance(Phase::Draining),
        () = lifecycle.reached(Phase::Draining) => (),
    }
    tracing::info!(
        "ending: {} open request(s) are answered first; a second signal ends them",
        lifecycle.open()
    );
    let timeout = async {
        match drain_timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        _ = signals.next() => (),
        () = timeout => tracing::warn!("requests are still open after the drain timeout"),
    }
    lifecycle.advance(Phase::Stopping);
}

/// The first signal ends the process.
async fn exit_on_signals() {
    match Signals::new() {
        Ok(mut signals) => std::process::exit(128 + signals.next().await),
        Err(error) => tracing::warn!("no handler for signals: {error}"),
    }
}

/// SIGTERM and SIGINT.
#[cfg(unix)]
struct Signals([tokio::signal::unix::Signal; 2]);

#[cfg(unix)]
impl Signals {
    fn new() -> io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self([
            signal(SignalKind::terminate())?,
            signal(SignalKind::interrupt())?,
        ]))
    }

    /// Waits for one, and gives back its number.
    async fn next(&mut self) -> i32 {
        use tokio::signal::unix::SignalKind;
        let [terminate, interrupt] = &mut self.0;
        let signal = tokio::select! {
            _ = terminate.recv() => SignalKind::terminate(),
            _ = interrupt.recv() => SignalKind::interrupt(),
        };
        signal.as_raw_value()
    }
}

/// Ctrl-C.
#[cfg(not(unix))]
struct Signals;

#[cfg(not(unix))]
impl Signals {
    fn new() -> io::Result<Self> {
        Ok(Self)
    }

    /// Waits for it, and gives back the number of SIGINT.
    async fn next(&mut self) -> i32 {
        match tokio::signal::ctrl_c().await {
            Ok(()) => 2,
            Err(_) => std::future::pending().await,
        }
    }
}

/// Accepts connections, and holds `open` while it does.
async fn accept(listener: tokio::net::TcpListener, site: Arc<Site>, open: Sender<()>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let connection = Connection {
                    site: site.clone(),
                    open: open.clone(),
                };
                tokio::spawn(connection.serve(stream));
            }
            Err(error) => {
                tracing::debug!("a connection was not accepted: {error}");
                tokio::time::sleep(AGAIN).await;
            }
        }
    }
}

/// A connection, in a task of its own. When its client goes away, the reply that is being made is dropped.
struct Connection {
    site: Arc<Site>,
    /// Is dropped with the connection.
    open: Sender<()>,
}

impl Connection {
    async fn serve(self, stream: TcpStream) {
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!("small packets may wait: {error}");
        }
        let Self { site, open } = self;
        let options = &site.options;
        let mut stream = TimeoutStream::new(stream);
        stream.set_write_timeout(Some(options.write_timeout));
        let asked = Arc::new(AtomicBool::new(false));
        let has_asked = asked.clone();
        let router = site.router.clone();
        let service = service_fn(move |request| {
            asked.store(true, Ordering::Relaxed);
            Box::pin(TowerToHyperService::new(router.clone()).call(request))
        });
        let read_timeout = options.read_timeout;
        let mut connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(read_timeout)
            .serve_connection(TokioIo::new(Box::pin(stream)), service);
        let mut ended = tokio::select! {
            ended = poll_fn(|context| connection.poll_without_shutdown(context)) => Some(ended),
            () = site.lifecycle.drained() => None,
        };
        if ended.is_none() && has_asked.load(Ordering::Relaxed) {
            // What is being sent is sent whole.
            Pin::new(&mut connection).graceful_shutdown();
            ended = Some(poll_fn(|context| connection.poll_without_shutdown(context)).await);
        }
        let parts = connection.into_parts();
        let mut stream = parts.io.into_inner();
        if let Some(Err(error)) = ended {
            tracing::debug!("a connection ended: {error}");
            if error.is_timeout() && !parts.read_buf.is_empty() {
                let late = timed_out(read_timeout);
                // A client that is gone reads nothing.
                let _ = stream.write_all(late.as_bytes()).await;
            }
        }
        let _ = stream.shutdown().await;
        drop(open);
    }
}

/// The reply to headers that do not come, as it goes over the wire.
fn timed_out(after: Duration) -> String {
    let error = ApiError::Timeout { after };
    let body = error.body().to_string();
    format!(
        "HTTP/1.1 {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        error.status(),
        body.len()
    )
}
