//! Quantiles of latencies, and how many requests are answered soon enough.

use std::str::FromStr;

use serde::Serialize;

use super::Record;

/// A distribution of times, in seconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Quantiles {
    /// Number of times.
    pub count: usize,
    /// The mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// 95 % are no longer.
    pub p95: f64,
    /// 99 % are no longer.
    pub p99: f64,
    /// The longest.
    pub longest: f64,
}

impl Quantiles {
    /// Of these times, with a straight line between two neighbours; `None` if there are none.
    pub fn of(times: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = times.into_iter().collect();
        sorted.sort_unstable_by(f64::total_cmp);
        let longest = *sorted.last()?;
        let at = |share: f64| {
            let place = share * (sorted.len() - 1) as f64;
            let (low, high) = (
                sorted[place.floor() as usize],
                sorted[place.ceil() as usize],
            );
            low + (high - low) * place.fract()
        };
        Some(Self {
            count: sorted.len(),
            mean: sorted.iter().sum::<f64>() / sorted.len() as f64,
            p50: at(0.5),
            p95: at(0.95),
            p99: at(0.99),
            longest,
        })
    }
}

/// Within which times a request counts as good; what is not given does not count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Goodput {
    /// Seconds to the first token.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_to_first_token: Option<f64>,
    /// Seconds of each token after it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_per_output_token: Option<f64>,
    /// Seconds to the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_to_end: Option<f64>,
}

impl Goodput {
    /// Whether a request is good: whole, and in time. A text of one token has no time of those after it.
    pub fn accepts(&self, record: &Record) -> bool {
        let within = |time: Option<f64>, limit: Option<f64>| match (time, limit) {
            (Some(time), Some(limit)) => time <= limit,
            _ => true,
        };
        record.fault.is_none()
            && within(record.time_to_first_token(), self.time_to_first_token)
            && within(record.time_per_output_token(), self.time_per_output_token)
            && within(Some(record.end_to_end()), self.end_to_end)
    }
}

impl FromStr for Goodput {
    type Err = String;

    /// Reads limits in milliseconds, such as `ttft:200,tpot:50`.
    fn from_str(text: &str) -> Result<Self, String> {
        let mut goodput = Self::default();
        for part in text.split(',') {
            let (name, limit) = part.split_once(':').unwrap_or((part, ""));
            let milliseconds = limit.parse().ok();
            let seconds = milliseconds
                .filter(|&limit: &f64| limit.is_finite() && limit > 0.0)
                .map(|limit| limit / 1e3);
            let place = match name {
                "ttft" => &mut goodput.time_to_first_token,
                "tpot" => &mut goodput.time_per_output_token,
                "e2e" => &mut goodput.end_to_end,
                _ => return Err(format!("{name:?} is none of ttft, tpot and e2e")),
            };
            if seconds.is_none() || place.is_some() {
                return Err(format!(
                    "{part:?} must be like {name}:MILLISECONDS, and stand once"
                ));
            }
            *place = seconds;
        }
        Ok(goodput)
    }
}
