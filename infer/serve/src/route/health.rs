//! Which replicas can take requests.

use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use tokio::time::{sleep, timeout};

use super::client::{Outgoing, send};
use super::replica::{Failure, Replica};

/// Time between two checks.
const EVERY: Duration = Duration::from_secs(1);

/// How long a replica may take to say that it is well.
const WITHIN: Duration = Duration::from_secs(3);

/// Asks a replica for its health.
pub async fn check(replica: Arc<Replica>) {
    let outgoing = Outgoing::get("/health");
    let reply = timeout(WITHIN, send(replica.address(), &outgoing)).await;
    replica.checked(match reply {
        Ok(Ok(reply)) if reply.head.status == StatusCode::OK => Ok(()),
        // It may be finishing what it has.
        Ok(Ok(reply)) => Err(Failure::Refuses(format!(
            "its health is {}",
            reply.head.status
        ))),
        Ok(Err(error)) => Err(Failure::Silent(error.to_string())),
        Err(_) => Err(Failure::Silent(format!(
            "no answer in {} seconds",
            WITHIN.as_secs()
        ))),
    });
}

/// Checks a replica again and again, and at once when a request has failed.
pub async fn watch(replica: Arc<Replica>) {
    loop {
        tokio::select! {
            () = sleep(EVERY) => (),
            () = replica.doubted() => (),
        }
        check(replica.clone()).await;
    }
}
