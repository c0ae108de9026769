//! The metrics of all replicas, each with its name, and those of the proxy.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::response::Response;
use prometheus::{IntCounter, IntGaugeVec, Opts, Registry, TextEncoder};
use tokio::time::timeout;

use super::Proxy;
use super::client::{Outgoing, send};
use super::replica::Replica;
use crate::http::respond;
use crate::metrics::{Register, TEXT_FORMAT, valid};

/// How long a replica may take to say its metrics.
const WITHIN: Duration = Duration::from_secs(3);

/// What the proxy counts itself.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    /// Requests that were sent to a second replica, after a failure or to a shorter queue.
    pub retries: IntCounter,
    up: IntGaugeVec,
    open: IntGaugeVec,
}

impl Metrics {
    /// All of them at zero.
    pub fn new() -> Self {
        let mut register = Register(Registry::new());
        let gauge =
            |name: &str, help: &str| valid(IntGaugeVec::new(Opts::new(name, help), &["replica"]));
        Self {
            retries: register.counter(
                "firebox_router_retries_total",
                "Requests that were sent to a second replica, since the first one failed before it answered, or had a full queue.",
            ),
            up: register.add(gauge(
                "firebox_router_replica_up",
                "Whether a replica is healthy.",
            )),
            open: register.add(gauge(
                "firebox_router_replica_open_requests",
                "Requests that a replica has not answered.",
            )),
            registry: register.0,
        }
    }

    fn text(&self, replicas: &[Arc<Replica>]) -> String {
        for replica in replicas {
            let label = [replica.address().as_str()];
            let up = self.up.with_label_values(&label);
            up.set(replica.is_healthy().into());
            let open = self.open.with_label_values(&label);
            open.set(replica.open() as i64);
        }
        valid(TextEncoder::new().encode_to_string(&self.registry.gather()))
    }
}

/// `/metrics`: those of the healthy replicas, which are asked with the client's key.
pub async fn gathered(State(proxy): State<Arc<Proxy>>, request: Request) -> Response {
    let key = request.headers().get(AUTHORIZATION);
    let outgoing = Outgoing::get("/metrics").with_header(AUTHORIZATION, key.cloned());
    let healthy = proxy.replicas.iter().filter(|replica| replica.is_healthy());
    let asked = healthy.map(|replica| {
        let (replica, outgoing) = (replica.clone(), outgoing.clone());
        let text = tokio::spawn({
            let replica = replica.clone();
            async move { timeout(WITHIN, text_of(&replica, &outgoing)).await }
        });
        (replica, text)
    });
    let asked: Vec<_> = asked.collect();
    let mut families = Families::default();
    for (replica, text) in asked {
        match text.await {
            Ok(Ok(Some(text))) => families.add(replica.address().as_str(), &text),
            _ => tracing::warn!("{} did not say its metrics", replica.address()),
        }
    }
    let own = proxy.metrics.text(&proxy.replicas);
    respond::text(TEXT_FORMAT, families.text() + &own)
}

async fn text_of(replica: &Replica, outgoing: &Outgoing) -> Option<String> {
    let reply = send(replica.address(), outgoing).await.ok()?;
    if reply.head.status != StatusCode::OK {
        return None;
    }
    let whole = reply.whole().await.ok()?;
    String::from_utf8(whole.into()).ok()
}

/// Metrics of several servers: what each family means stands once, above the lines of all servers.
#[derive(Debug, Default)]
struct Families {
    /// In the order in which they came.
    families: Vec<Family>,
    /// Where a name is.
    index: HashMap<String, usize>,
}

#[derive(Debug, Default)]
struct Family {
    /// The lines `HELP` and `TYPE`.
    comments: BTreeMap<String, String>,
    lines: Vec<String>,
}

impl Families {
    /// Adds the text of a server.
    fn add(&mut self, replica: &str, text: &str) {
        let mut current = None;
        for line in text.lines().filter(|line| !line.is_empty()) {
            match line.strip_prefix("# ") {
                // `HELP name …` or `TYPE name …`
                Some(comment) => {
                    let mut words = comment.splitn(3, ' ');
                    let (Some(kind), Some(name)) = (words.next(), words.next()) else {
                        continue;
                    };
                    let index = self.family(name);
                    let comments = &mut self.families[index].comments;
                    // The first server's, where servers of two versions put it in other words.
                    comments.entry(kind.to_owned()).or_insert(line.to_owned());
                    current = Some(index);
                }
                // The lines of a family stand below its comments; a histogram's have names of their own.
                None => {
                    let at = line.find(['{', ' ']).unwrap_or(line.len());
                    let index = current.unwrap_or_else(|| self.family(&line[..at]));
                    self.families[index].lines.push(labelled(line, at, replica));
                }
            }
        }
    }

    fn family(&mut self, name: &str) -> usize {
        if let Some(&index) = self.index.get(name) {
            return index;
        }
        self.index.insert(name.to_owned(), self.families.len());
        self.families.push(Family::default());
        self.families.len() - 1
    }

    fn text(&self) -> String {
        let families = self.families.iter();
        let lines = families.flat_map(|family| family.comments.values().chain(&family.lines));
        lines.map(|line| format!("{line}\n")).collect()
    }
}

/// A line, whose name ends at `at`, with a label more. An address needs no escapes.
fn labelled(line: &str, at: usize, replica: &str) -> String {
    let (name, rest) = line.split_at(at);
    match rest.strip_prefix('{') {
        Some(labels) => format!("{name}{{replica=\"{replica}\",{labels}"),
        None => format!("{name}{{replica=\"{replica}\"}}{rest}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_is_explained_once() {
        let text = |count: usize| {
            format!(
                "# HELP a_total Things.\n# TYPE a_total counter\na_total {count}\n# HELP b_seconds Time.\n\
                 # TYPE b_seconds histogram\nb_seconds_bucket{{le=\"+Inf\"}} {count}\nb_seconds_count {count}\n"
            )
        };
        let mut families = Families::default();
        families.add("x:1", &text(1));
        families.add("y:2", &text(2).replace("Things", "More"));
        families.add("y:3", "c 8\n");
        assert_eq!(
            families.text(),
            "# HELP a_total Things.\n# TYPE a_total counter\na_total{replica=\"x:1\"} 1\na_total{replica=\"y:2\"} 2\n\
             # HELP b_seconds Time.\n# TYPE b_seconds histogram\n\
             b_seconds_bucket{replica=\"x:1\",le=\"+Inf\"} 1\nb_seconds_count{replica=\"x:1\"} 1\n\
             b_seconds_bucket{replica=\"y:2\",le=\"+Inf\"} 2\nb_seconds_count{replica=\"y:2\"} 2\n\
             c{replica=\"y:3\"} 8\n"
        );
    }
}
