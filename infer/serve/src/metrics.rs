//! What the server counts and measures, as Prometheus reads it (text format 0.0.4).
//!
//! HTTP counts requests and what clients are told; the scheduler counts steps, the cache and experts. Each keeps its numbers here
//! as they arise.

use prometheus::core::Collector;
use prometheus::{
    Counter, Gauge, Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};

pub use prometheus::TEXT_FORMAT;

/// Why a choice is over.
const FINISHES: [&str; 4] = ["stop", "length", "cancelled", "error"];

/// What is served, as a label says it.
#[derive(Debug, Clone, Copy)]
pub struct Build<'a> {
    /// Version of the server.
    pub version: &'a str,
    /// Where the model runs.
    pub device: &'a str,
    /// The type that weights are kept in.
    pub dtype: &'a str,
    /// Name of the model.
    pub model: &'a str,
}

/// Everything that is counted and measured. Times are in seconds.
#[derive(Debug, Clone)]
pub struct Metrics {
    registry: Registry,
    /// Sequences in the batch.
    pub running: IntGauge,
    /// Sequences in the queue.
    pub waiting: IntGauge,
    /// Share of the cache's blocks that sequences hold.
    pub cache_usage: Gauge,
    /// Blocks of the cache that sequences hold.
    pub cache_blocks: IntGauge,
    /// Tokens of prompts that were read, cached ones included; a prompt counts once, however many choices it has.
    pub prompt_tokens: IntCounter,
    /// Tokens that were drawn.
    pub generation_tokens: IntCounter,
    /// Tokens of prompts that were looked up in the cache.
    pub prefix_queries: IntCounter,
    /// Tokens of prompts that were found in the cache.
    pub prefix_hits: IntCounter,
    /// Sequences that gave their blocks back and were computed again.
    pub preemptions: IntCounter,
    /// Choices of requests that are over, by endpoint and by how they ended.
    pub requests: IntCounterVec,
    /// Requests that were refused, by the code of the error.
    pub rejected: IntCounterVec,
    /// From a request's arrival to the first token of a choice.
    pub time_to_first_token: Histogram,
    /// Between two tokens of a choice.
    pub inter_token: Histogram,
    /// From a request's arrival to the end of a choice.
    pub request_seconds: Histogram,
    /// From a choice's arrival in the queue to its place in the batch.
    pub queue_seconds: Histogram,
    /// From a choice's place in the batch to its first token.
    pub prefill_seconds: Histogram,
    /// Tokens that a step computes.
    pub step_tokens: Histogram,
    /// Time of a step.
    pub step_seconds: Histogram,
    /// Drafts that were verified.
    pub drafts: IntCounter,
    /// Tokens of these drafts.
    pub draft_tokens: IntCounter,
    /// Those of them that were what the model drew.
    pub accepted_tokens: IntCounter,
    /// The same, by their position in the draft, from 0.
    pub accepted_by_position: IntCounterVec,
    /// Distinct experts that a layer used in a step.
    pub step_experts: Histogram,
    /// What that would be if tokens chose experts evenly, summed over layers and steps.
    pub even_experts: Counter,
    /// Tokens that were sent to each expert: a row for each mixture layer, in the order that it was registered with.
    pub expert_tokens: Vec<Vec<IntCounter>>,
}

impl Metrics {
    /// All of them at zero. `layers` has the number of each mixture layer and of its experts, and `draft_tokens` is the most
    /// tokens that a draft has.
    ///
    /// # Panics
    ///
    /// When a layer is given twice.
    pub fn new(build: Build<'_>, layers: &[(usize, usize)], draft_tokens: usize) -> Self {
        let mut register = Register(Registry::new());
        let requests = register.add(vec(
            "firebox_requests_total",
            "Choices of requests that are over, by endpoint and by how they ended.",
            &["endpoint", "finish"],
        ));
        for endpoint in Endpoint::ALL {
            for finish in FINISHES {
                requests.with_label_values(&[endpoint.label(), finish]);
            }
        }
        let accepted_by_position = register.add(vec(
            "firebox_speculative_accepted_tokens_by_position_total",
            "Drafted tokens that were what the model drew, by their position in the draft.",
            &["position"],
        ));
        for position in 0..draft_tokens {
            accepted_by_position.with_label_values(&[&position.to_string()]);
        }
        let metrics = Self {
            running: register.gauge("firebox_requests_running", "Sequences in the batch."),
            waiting: register.gauge("firebox_requests_waiting", "Sequences in the queue."),
            cache_usage: register.add(valid(Gauge::new(
                "firebox_kv_cache_usage_ratio",
                "Share of the cache's blocks that sequences hold.",
            ))),
            cache_blocks: register.gauge(
                "firebox_kv_cache_blocks",
                "Blocks of the cache that sequences hold.",
            ),
            prompt_tokens: register.counter(
                "firebox_prompt_tokens_total",
                "Tokens of prompts, cached ones included.",
            ),
            generation_tokens: register
                .counter("firebox_generation_tokens_total", "Tokens that were drawn."),
            prefix_queries: register.counter(
                "firebox_prefix_cache_query_tokens_total",
                "Tokens of prompts that were looked up in the cache.",
            ),
            prefix_hits: register.counter(
                "firebox_prefix_cache_hit_tokens_total",
                "Tokens of prompts that were found in the cache.",
            ),
            preemptions: register.counter(
                "firebox_preemptions_total",
                "Sequences that gave their blocks back and were computed again.",
            ),
            requests,
            rejected: register.add(vec(
                "firebox_rejected_total",
                "Requests for texts that were refused, by the code of the error.",
                &["reason"],
            )),
            time_to_first_token: register.histogram(
                "firebox_time_to_first_token_seconds",
                "From a request's arrival to the first token of a choice.",
                SECONDS,
            ),
            inter_token: register.histogram(
                "firebox_inter_token_seconds",
                "Between two tokens of a choice.",
                SECONDS,
            ),
            request_seconds: register.histogram(
                "firebox_request_seconds",
                "From a request's arrival to the end of a choice.",
                SECONDS,
            ),
            queue_seconds: register.histogram(
                "firebox_queue_seconds",
                "From a choice's arrival in the queue to its place in the batch.",
                SECONDS,
            ),
            prefill_seconds: register.histogram(
                "firebox_prefill_seconds",
                "From a choice's place in the batch to its first token.",
                SECONDS,
            ),
            step_tokens: register.histogram(
                "firebox_step_tokens",
                "Tokens that a step computes.",
                POWERS_OF_TWO,
            ),
            step_seconds: register.histogram("firebox_step_seconds", "Time of a step.", SECONDS),
            drafts: register.counter(
                "firebox_speculative_drafts_total",
                "Drafts that were verified.",
            ),
            draft_tokens: register.counter(
                "firebox_speculative_draft_tokens_total",
                "Tokens of drafts that were verified.",
            ),
            accepted_tokens: register.counter(
                "firebox_speculative_accepted_tokens_total",
                "Drafted tokens that were what the model drew.",
            ),
            accepted_by_position,
            step_experts: register.histogram(
                "firebox_step_experts",
                "Distinct experts that a layer used in a step.",
                POWERS_OF_TWO,
            ),
            even_experts: register.add(valid(Counter::new(
                "firebox_step_experts_even_total",
                "Sum of firebox_step_experts if tokens chose experts evenly: E(1 - (1 - k/E)^T) for a layer and a step of T tokens.",
            ))),
            expert_tokens: register.experts(layers),
            registry: register.0.clone(),
        };
        let labels = ["version", "device", "dtype", "model"];
        let opts = Opts::new("firebox_build_info", "What is served.");
        let info = register.add(valid(IntGaugeVec::new(opts, &labels)));
        let values = [build.version, build.device, build.dtype, build.model];
        info.with_label_values(&values).set(1);
        metrics
    }

    /// The text that Prometheus reads.
    pub fn text(&self) -> String {
        valid(TextEncoder::new().encode_to_string(&self.registry.gather()))
    }
}

/// What generates texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Endpoint {
    /// `/v1/completions`
    Completions,
    /// `/v1/chat/completions`
    Chat,
}

impl Endpoint {
    const ALL: [Self; 2] = [Self::Completions, Self::Chat];

    /// Its name in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Self::Completions => "completions",
            Self::Chat => "chat",
        }
    }
}

/// Bounds of times: three for each power of ten, from a tenth of a millisecond to five minutes.
const SECONDS: &[f64] = &[
    0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0,
    10.0, 20.0, 50.0, 100.0, 300.0,
];

/// Bounds of counts.
const POWERS_OF_TWO: &[f64] = &[
    1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0,
];

/// Adds metrics to a registry.
pub(crate) struct Register(pub(crate) Registry);

impl Register {
    pub(crate) fn add<M: Collector + Clone + 'static>(&mut self, metric: M) -> M {
        valid(self.0.register(Box::new(metric.clone())));
        metric
    }

    pub(crate) fn counter(&mut self, name: &str, help: &str) -> IntCounter {
        self.add(valid(IntCounter::new(name, help)))
    }

    fn gauge(&mut self, name: &str, help: &str) -> IntGauge {
        self.add(valid(IntGauge::new(name, help)))
    }

    fn histogram(&mut self, name: &str, help: &str, bounds: &[f64]) -> Histogram {
        let opts = HistogramOpts::new(name, help).buckets(bounds.to_vec());
        self.add(valid(Histogram::with_opts(opts)))
    }

    fn experts(&mut self, layers: &[(usize, usize)]) -> Vec<Vec<IntCounter>> {
        let tokens = self.add(vec(
            "firebox_expert_tokens_total",
            "Tokens that were sent to an expert of a layer.",
            &["layer", "expert"],
        ));
        let layers = layers.iter().map(|&(layer, experts)| {
            let layer = layer.to_string();
            let experts = (0..experts).map(|expert| expert.to_string());
            let counters = experts.map(|expert| tokens.with_label_values(&[&layer, &expert]));
            counters.collect()
        });
        layers.collect()
    }
}

fn vec(name: &str, help: &str, labels: &[&str]) -> IntCounterVec {
    valid(IntCounterVec::new(Opts::new(name, help), labels))
}

/// Names and labels stand in this file, so that a wrong one is found by its test.
pub(crate) fn valid<T>(made: prometheus::Result<T>) -> T {
    made.expect("names and labels are valid, and each is registered once")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics() -> Metrics {
        let build = Build {
            version: "1.2.3",
            device: "flex",
            dtype: "f32",
            model: "a \"b\"",
        };
        Metrics::new(build, &[(0, 2), (3, 2)], 2)
    }

    #[test]
    fn everything_is_there_from_the_beginning_at_zero() {
        let text = metrics().text();
        for name in [
            "requests_running",
            "requests_waiting",
            "kv_cache_usage_ratio",
            "kv_cache_blocks",
            "prompt_tokens_total",
            "generation_tokens_total",
            "prefix_cache_query_tokens_total",
            "prefix_cache_hit_tokens_total",
            "preemptions_total",
            "requests_total{endpoint=\"completions\",finish=\"stop\"}",
            "requests_total{endpoint=\"chat\",finish=\"cancelled\"}",
            "time_to_first_token_seconds_count",
            "inter_token_seconds_count",
            "request_seconds_count",
            "queue_seconds_count",
            "prefill_seconds_count",
            "step_tokens_count",
            "step_seconds_count",
            "speculative_drafts_total",
            "speculative_draft_tokens_total",
            "speculative_accepted_tokens_total",
            "speculative_accepted_tokens_by_position_total{position=\"1\"}",
            "step_experts_count",
            "step_experts_even_total",
            "expert_tokens_total{expert=\"1\",layer=\"3\"}",
        ] {
            assert!(
                text.contains(&format!("\nfirebox_{name} 0\n")),
                "{name}: {text}"
            );
        }
        let info =
            r#"firebox_build_info{device="flex",dtype="f32",model="a \"b\"",version="1.2.3"} 1"#;
        assert!(text.contains(info), "{text}");
    }

    #[test]
    fn each_family_has_help_and_a_type() {
        let metrics = metrics();
        metrics.rejected.with_label_values(&["overloaded"]).inc();
        metrics.expert_tokens[1][1].inc_by(5);
        let text = metrics.text();
        assert!(text.contains("firebox_expert_tokens_total{expert=\"1\",layer=\"3\"} 5\n"));
        let families = metrics.registry.gather();
        assert_eq!(families.len(), 26);
        for family in families {
            let name = family.name();
            assert!(text.contains(&format!("# HELP {name} ")), "{name}");
            assert!(text.contains(&format!("# TYPE {name} ")), "{name}");
            let is_counter = text.contains(&format!("# TYPE {name} counter"));
            assert_eq!(is_counter, name.ends_with("_total"), "{name}");
        }
    }
}
