//! What a Firebox server says of itself: the growth of its counters over a load.

use std::collections::BTreeMap;

use serde::Serialize;

/// What `/metrics` said: values by series, as they are written.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    /// Reads the text of Prometheus; `None` if it is not that of a Firebox server.
    pub fn read(text: &str) -> Option<Self> {
        let lines = text.lines().filter(|line| line.starts_with("firebox_"));
        let series = lines.filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        });
        let series: BTreeMap<String, f64> = series.collect();
        (!series.is_empty()).then_some(Self(series))
    }

    /// The series of a family, whatever their labels.
    fn family(&self, name: &str) -> impl Iterator<Item = (&str, f64)> {
        let series = self.0.range(name.to_owned()..);
        let series = series.take_while(move |(series, _)| series.starts_with(name));
        series.filter_map(move |(series, &value)| {
            let labels = &series[name.len()..];
            (labels.is_empty() || labels.starts_with('{')).then_some((labels, value))
        })
    }

    /// The sum of a family's series, such as those of all replicas.
    pub fn sum(&self, name: &str) -> f64 {
        self.family(name).map(|(_, value)| value).sum()
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.sum("firebox_requests_running") + self.sum("firebox_requests_waiting") == 0.0
    }

    /// What was added since an earlier one.
    pub fn since(&self, before: &Self) -> Self {
        let series = self.0.iter().map(|(name, value)| {
            let earlier = before.0.get(name).copied().unwrap_or(0.0);
            (name.clone(), value - earlier)
        });
        Self(series.collect())
    }
}

/// What a server did during a load.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ServerSide {
    /// Steps of the model.
    pub steps: u64,
    /// Tokens that a step computes, on average.
    pub tokens_per_step: f64,
    /// Seconds of a step, on average.
    pub step_seconds: f64,
    /// Share of the load's time outside of steps: scheduling, and waiting for requests. Of several replicas together, a share
    /// of the time of one.
    pub outside_of_steps: f64,
    /// Tokens of prompts, as its counter says.
    pub prompt_tokens: u64,
    /// Tokens that were drawn, as its counter says.
    pub generation_tokens: u64,
    /// Share of the prompts' tokens that were found in the cache.
    pub prefix_hit_share: f64,
    /// Texts that gave their place in the cache back, and were computed again.
    pub preemptions: u64,
    /// Tokens that were drafted.
    pub drafted_tokens: u64,
    /// Those that were accepted.
    pub accepted_tokens: u64,
    /// Its experts; `None` for a dense model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub experts: Option<ExpertUse>,
}

/// How the experts of a mixture are used, on average over its layers and the steps of a load.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct ExpertUse {
    /// Experts of a layer.
    pub experts: usize,
    /// Distinct ones that a step visits in a layer.
    pub distinct: f64,
    /// What that would be if tokens chose evenly, as the planner assumes: `E(1 − (1 − k/E)^T)` for a step of T tokens.
    pub distinct_if_even: f64,
    /// Tokens of a step for each expert that it visits.
    pub tokens_per_expert: f64,
    /// Tokens of the busiest expert of any layer, over the mean of its layer.
    pub busiest: f64,
}

impl ServerSide {
    /// Between two scrapes, over so many seconds.
    pub(super) fn of(before: &Scrape, after: &Scrape, seconds: f64) -> Self {
        let grown = after.since(before);
        let sum = |name: &str| grown.sum(&format!("firebox_{name}"));
        let count = |name: &str| sum(name).round() as u64;
        let steps = sum("step_seconds_count");
        let per_step = |value: f64| value / steps.max(1.0);
        Self {
            steps: steps as u64,
            tokens_per_step: per_step(sum("step_tokens_sum")),
            step_seconds: per_step(sum("step_seconds_sum")),
            outside_of_steps: 1.0 - sum("step_seconds_sum") / seconds,
            prompt_tokens: count("prompt_tokens_total"),
            generation_tokens: count("generation_tokens_total"),
            prefix_hit_share: sum("prefix_cache_hit_tokens_total")
                / sum("prefix_cache_query_tokens_total").max(1.0),
            preemptions: count("preemptions_total"),
            drafted_tokens: count("speculative_draft_tokens_total"),
            accepted_tokens: count("speculative_accepted_tokens_total"),
            experts: ExpertUse::of(&grown),
        }
    }

    /// Share of the drafted tokens that were accepted.
    pub fn acceptance(&self) -> Option<f64> {
        (self.drafted_tokens > 0).then(|| self.accepted_tokens as f64 / self.drafted_tokens as f64)
    }
}

impl ExpertUse {
    fn of(grown: &Scrape) -> Option<Self> {
        // By layer and expert, over replicas.
        let mut tokens: BTreeMap<(String, String), f64> = BTreeMap::new();
        for (labels, value) in grown.family("firebox_expert_tokens_total") {
            let place = (label(labels, "layer")?, label(labels, "expert")?);
            *tokens.entry(place).or_default() += value;
        }
        let mut layers: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
        for ((layer, _), &value) in &tokens {
            layers.entry(layer).or_default().push(value);
        }
        let visits = grown.sum("firebox_step_experts_count");
        let experts = layers.values().next()?.len();
        let visited = grown.sum("firebox_step_experts_sum");
        if visits == 0.0 || visited == 0.0 {
            return None;
        }
        let busiest = layers.values().map(|tokens| {
            let largest = tokens.iter().copied().fold(0.0, f64::max);
            let sum: f64 = tokens.iter().sum();
            largest * tokens.len() as f64 / sum.max(1.0)
        });
        Some(Self {
            experts,
            distinct: visited / visits,
            distinct_if_even: grown.sum("firebox_step_experts_even_total") / visits,
            tokens_per_expert: tokens.values().sum::<f64>() / visited,
            busiest: busiest.fold(0.0, f64::max),
        })
    }
}

/// The value of a label in `{name="value",…}`.
fn label(labels: &str, name: &str) -> Option<String> {
    let start = labels.find(&format!("{name}=\""))? + name.len() + 2;
    let value = &labels[start..];
    Some(value[..value.find('"')?].to_owned())
}
