//! What a model is planned for.

use std::fs;
use std::path::Path;

use firebox_console::durable::FileError;
use serde::{Deserialize, Serialize};

use super::PlanError;

/// Files of `configs/hardware`, by name.
const KNOWN: [(&str, &str); 3] = [
    ("a100", include_str!("../../../configs/hardware/a100.toml")),
    ("h100", include_str!("../../../configs/hardware/h100.toml")),
    (
        "laptop",
        include_str!("../../../configs/hardware/laptop.toml"),
    ),
];

/// Accelerators, each of which is a rank, and what connects them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    /// For people.
    pub name: String,
    /// Of one accelerator.
    pub memory_bytes: f64,
    /// Of one accelerator, in bytes/s.
    pub memory_bandwidth: f64,
    /// Of one accelerator, in FLOP/s.
    pub peak_flops: f64,
    /// Accelerators of a node.
    pub node: usize,
    /// Share of `peak_flops` that is reached.
    pub flops_efficiency: f64,
    /// Share of `memory_bandwidth` that is reached.
    pub bandwidth_efficiency: f64,
    /// Within a node.
    pub link: Link,
    /// Between nodes.
    pub network: Link,
    /// What it costs.
    pub price: Price,
}

/// A connection.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Bytes/s in one direction, of one accelerator.
    pub bandwidth: f64,
    /// Seconds that a message takes however short it is.
    pub latency: f64,
}

/// A price.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Of one accelerator.
    pub dollars_per_hour: f64,
}

impl Hardware {
    /// That of a file, or a known one: `a100`, `h100` or `laptop`.
    ///
    /// # Errors
    ///
    /// When there is no such file, or it does not describe hardware.
    pub fn open(name: &str) -> Result<Self, PlanError> {
        let known = KNOWN.iter().find(|(known, _)| *known == name);
        let text = match known {
            Some((_, text)) => (*text).to_owned(),
            None if Path::new(name).is_file() => {
                fs::read_to_string(name).map_err(FileError::of("read", name.as_ref()))?
            }
            None => {
                let names: Vec<&str> = KNOWN.iter().map(|(name, _)| *name).collect();
                return Err(PlanError::UnknownHardware {
                    name: name.to_owned(),
                    known: names.join(", "),
                });
            }
        };
        let invalid = |reason: String| PlanError::Hardware {
            file: name.to_owned(),
            reason,
        };
        let hardware: Self =
            toml::from_str(&text).map_err(|error| invalid(error.message().to_owned()))?;
        match hardware.fault() {
            Some(fault) => Err(invalid(fault)),
            None => Ok(hardware),
        }
    }

    /// A number that cannot be.
    fn fault(&self) -> Option<String> {
        let positive = [
            ("memory_bytes", self.memory_bytes),
            ("memory_bandwidth", self.memory_bandwidth),
            ("peak_flops", self.peak_flops),
            ("node", self.node as f64),
            ("flops_efficiency", self.flops_efficiency),
            ("bandwidth_efficiency", self.bandwidth_efficiency),
            ("link.bandwidth", self.link.bandwidth),
            ("network.bandwidth", self.network.bandwidth),
        ];
        let wrong = positive
            .iter()
            .find(|(_, value)| !(*value > 0.0 && value.is_finite()));
        let wrong = wrong.map(|(key, value)| format!("{key} = {value} must be above 0"));
        let shares = [
            ("flops_efficiency", self.flops_efficiency),
            ("bandwidth_efficiency", self.bandwidth_efficiency),
        ];
        let above = shares.iter().find(|(_, share)| *share > 1.0);
        let above = above.map(|(key, share)| format!("{key} = {share} must be at most 1"));
        let times = [
            ("link.latency", self.link.latency),
            ("network.latency", self.network.latency),
            ("price.dollars_per_hour", self.price.dollars_per_hour),
        ];
        let negative = times
            .iter()
            .find(|(_, value)| !(*value >= 0.0 && value.is_finite()));
        let negative = negative.map(|(key, value)| format!("{key} = {value} must be 0 or above"));
        wrong.or(above).or(negative)
    }

    /// Seconds of work that reads so many bytes and computes so many operations at the same time (the roofline model).
    pub(super) fn work(&self, bytes: f64, operations: f64) -> f64 {
        let read = bytes / (self.memory_bandwidth * self.bandwidth_efficiency);
        let computed = operations / (self.peak_flops * self.flops_efficiency);
        read.max(computed)
    }

    /// Seconds of a sum over `ranks` neighbouring ranks: up and down a tree of messages, and all values but a rank's share
    /// twice over the link.
    pub(super) fn sum(&self, ranks: usize, bytes: f64) -> f64 {
        if ranks == 1 {
            return 0.0;
        }
        let link = match ranks <= self.node {
            true => self.link,
            false => self.network,
        };
        let n = ranks as f64;
        2.0 * n.log2().ceil() * link.latency + 2.0 * (n - 1.0) / n * bytes / link.bandwidth
    }

    /// Seconds of a message from one rank to another.
    pub(super) fn hop(&self, from: usize, to: usize, bytes: f64) -> f64 {
        let link = match from / self.node == to / self.node {
            true => self.link,
            false => self.network,
        };
        link.latency + bytes / link.bandwidth
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_known_hardware_is_valid_and_others_are_refused() {
        for (name, _) in KNOWN {
            let hardware = Hardware::open(name).unwrap();
            assert_eq!(hardware.node, 8);
        }
        let error = Hardware::open("b900").unwrap_err().to_string();
        assert!(error.contains("a100, h100, laptop"), "{error}");
        let mut slow = Hardware::open("a100").unwrap();
        slow.link.bandwidth = 0.0;
        assert_eq!(slow.fault().unwrap(), "link.bandwidth = 0 must be above 0");
        slow.link.bandwidth = 1.0;
        slow.flops_efficiency = 1.5;
        assert_eq!(
            slow.fault().unwrap(),
            "flops_efficiency = 1.5 must be at most 1"
        );
        slow.flops_efficiency = 1.0;
        slow.network.latency = -1.0;
        assert_eq!(
            slow.fault().unwrap(),
            "network.latency = -1 must be 0 or above"
        );
    }

    #[test]
    fn messages_by_hand() {
        let mut hardware = Hardware::open("a100").unwrap();
        hardware.link = Link {
            bandwidth: 10.0,
            latency: 1.0,
        };
        hardware.network = Link {
            bandwidth: 1.0,
            latency: 5.0,
        };
        assert_eq!(hardware.sum(1, 100.0), 0.0);
        // Two levels up and down, and 3/4 of 40 bytes twice.
        assert_eq!(hardware.sum(4, 40.0), 4.0 + 6.0);
        assert_eq!(hardware.hop(0, 7, 20.0), 3.0);
        assert_eq!(hardware.hop(7, 8, 20.0), 25.0);
    }
}
