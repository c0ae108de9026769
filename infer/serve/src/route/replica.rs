//! A server behind the address.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::http::Uri;
use axum::http::uri::Authority;
use tokio::sync::{Notify, watch};

/// After so many checks in a row without an answer, nothing more is expected of a replica: its open requests have failed too.
const LOST: u32 = 10;

/// Where a replica is: `HOST:PORT`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Address(Authority);

/// A text is not the address of a server.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("must be like http://HOST:PORT, with no path behind it")]
pub struct AddressError;

impl FromStr for Address {
    type Err = AddressError;

    /// Reads `http://HOST:PORT`; without a port it is 80, and without `http://` it is the same.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let uri: Uri = text.parse().map_err(|_| AddressError)?;
        let authority = uri.authority().ok_or(AddressError)?;
        let is_http = uri.scheme_str().is_none_or(|scheme| scheme == "http");
        let is_whole = matches!(uri.path(), "" | "/") && uri.query().is_none();
        if !is_http || !is_whole || authority.as_str().contains('@') || authority.host().is_empty()
        {
            return Err(AddressError);
        }
        let port = match authority.as_str().strip_prefix(authority.host()) {
            Some("") => 80,
            _ => authority.port_u16().ok_or(AddressError)?,
        };
        let whole = format!("{}:{port}", authority.host()).to_ascii_lowercase();
        whole.parse().map(Self).map_err(|_| AddressError)
    }
}

impl Address {
    /// `HOST:PORT`
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for Address {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Why a replica gets no requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// It answers, but takes no requests: it may be finishing those that it has.
    Refuses(String),
    /// It does not answer.
    Silent(String),
}

/// What is known of a replica's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Unknown,
    Healthy,
    /// With the number of checks in a row that had no answer.
    Failed(u32),
}

/// A server, with what is known of its health and its load.
#[derive(Debug)]
pub struct Replica {
    address: Address,
    /// Requests that were sent to it and are not answered.
    open: AtomicUsize,
    health: watch::Sender<Health>,
    /// Is told when a check should not wait.
    doubts: Notify,
}

impl Replica {
    /// One that was not checked yet.
    pub fn new(address: Address) -> Self {
        Self {
            address,
            open: AtomicUsize::new(0),
            health: watch::Sender::new(Health::Unknown),
            doubts: Notify::new(),
        }
    }

    /// Where it is.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// Requests that were sent to it and are not answered.
    pub fn open(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// Whether it may get requests.
    pub fn is_healthy(&self) -> bool {
        *self.health.borrow() == Health::Healthy
    }

    /// Takes the result of a check: why it has failed, if it has.
    pub fn checked(&self, result: Result<(), Failure>) {
        let before = *self.health.borrow();
        let address = &self.address;
        match (&result, before) {
            (Ok(()), Health::Healthy) | (Err(_), Health::Failed(_)) => (),
            (Ok(()), _) => tracing::info!("{address} is healthy"),
            (Err(Failure::Refuses(reason) | Failure::Silent(reason)), _) => {
                tracing::warn!("{address} gets no requests for now: {reason}");
            }
        }
        self.health.send_replace(match (result, before) {
            (Ok(()), _) => Health::Healthy,
            (Err(Failure::Refuses(_)), _) => Health::Failed(0),
            (Err(Failure::Silent(_)), Health::Failed(silent)) => {
                Health::Failed(silent.saturating_add(1))
            }
            (Err(Failure::Silent(_)), _) => Health::Failed(1),
        });
    }

    /// Takes a failure of a request, which the next check, at once, confirms or not.
    pub fn failed(&self, reason: Failure) {
        if self.is_healthy() {
            self.checked(Err(reason));
        }
        self.doubts.notify_one();
    }

    /// Waits until a request has failed.
    pub async fn doubted(&self) {
        self.doubts.notified().await;
    }

    /// Waits until nothing more is expected of it, for example since its machine is gone.
    pub async fn lost(&self) {
        let mut health = self.health.subscribe();
        let is_lost = |health: &Health| matches!(health, Health::Failed(silent) if *silent >= LOST);
        let waited = health.wait_for(is_lost).await;
        waited.expect("the sender is in self");
    }
}

/// A request that a replica has, until this is dropped.
#[derive(Debug)]
pub struct Held(Arc<Replica>);

impl Held {
    /// A request more for a replica.
    pub fn new(replica: Arc<Replica>) -> Self {
        replica.open.fetch_add(1, Ordering::Relaxed);
        Self(replica)
    }

    /// The replica.
    pub fn replica(&self) -> &Arc<Replica> {
        &self.0
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_host_and_a_port() {
        for (text, expected) in [
            ("http://10.0.0.1:8000", "10.0.0.1:8000"),
            ("http://Node1:8000/", "node1:8000"),
            ("node1:9", "node1:9"),
            ("http://node1", "node1:80"),
            ("http://[::1]:8000", "[::1]:8000"),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.as_str(), expected);
        }
        for text in [
            "",
            "https://a:1",
            "http://a:1/v1",
            "http://a:1?x",
            "http://u@a:1",
            "http://a:99999",
            "http://:80",
            "/a",
            "a b",
        ] {
            assert_eq!(text.parse::<Address>(), Err(AddressError), "{text}");
        }
    }

    #[test]
    fn a_replica_is_healthy_from_a_check_to_a_failure() {
        let replica = Replica::new("a:1".parse().unwrap());
        assert!(!replica.is_healthy());
        replica.checked(Ok(()));
        assert!(replica.is_healthy());
        replica.failed(Failure::Silent("it is gone".to_owned()));
        assert!(!replica.is_healthy());
        replica.checked(Ok(()));
        assert!(replica.is_healthy());
    }

    #[tokio::test]
    async fn a_replica_that_answers_is_not_lost_however_long_it_drains() {
        let replica = Replica::new("a:1".parse().unwrap());
        replica.checked(Ok(()));
        let is_lost = || tokio::time::timeout(std::time::Duration::ZERO, replica.lost());
        for _ in 0..3 * LOST {
            replica.checked(Err(Failure::Refuses("503".to_owned())));
        }
        assert!(!replica.is_healthy() && is_lost().await.is_err());
        for _ in 0..LOST {
            assert!(is_lost().await.is_err());
            replica.checked(Err(Failure::Silent("nobody".to_owned())));
        }
        assert!(is_lost().await.is_ok());
    }

    #[test]
    fn a_request_counts_until_it_is_answered() {
        let replica = Arc::new(Replica::new("a:1".parse().unwrap()));
        let held = [Held::new(replica.clone()), Held::new(replica.clone())];
        assert_eq!(replica.open(), 2);
        drop(held);
        assert_eq!(replica.open(), 0);
    }
}
