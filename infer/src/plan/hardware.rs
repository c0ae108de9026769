//! What a model is planned for.

use std::fs;
use std::path::Path;

use firebox_console::durable::{self, FileError};
use serde::{Deserialize, Serialize};

use super::PlanError;
use super::toml_fault;

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
    /// Display name.
    pub name: String,
    /// Of one accelerator.
    pub memory_bytes: f64,
    /// Of one accelerator, in bytes/s.
    pub memory_bandwidth: f64,
    /// Of one accelerator, in FLOP/s.
    pub peak_flops: f64,
    /// Accelerators of a node, which `link` connects.
    pub node: usize,
    /// Share of `peak_flops` that is reached.
    pub flops_efficiency: f64,
    /// Share of `memory_bandwidth` that is reached.
    pub bandwidth_efficiency: f64,
    /// How far reading and computing go on at the same time: 1 if the shorter of them takes no time of its own (the
    /// roofline model), 0 if one follows the other.
    #[serde(default = "one")]
    pub overlap: f64,
    /// Seconds that a layer takes however little it computes.
    #[serde(default)]
    pub layer_latency: f64,
    /// What ranks share that are threads of one machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shared: Option<Shared>,
    /// Within a node.
    pub link: Link,
    /// Between nodes.
    pub network: Link,
    /// Rental price.
    pub price: Price,
}

/// A node whose ranks are threads that share its cores. The numbers of one accelerator are then those of one core.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Shared {
    /// Cores of a node. Its ranks divide them; each has one thread at least.
    pub cores: usize,
    /// Of all cores together, in bytes/s.
    pub memory_bandwidth: f64,
    /// Of all cores together, in FLOP/s.
    pub peak_flops: f64,
}

/// Bandwidth and latency of a link (α–β model).
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Bytes/s in one direction, of one accelerator.
    pub bandwidth: f64,
    /// Seconds that a message takes however short it is.
    pub latency: f64,
}

/// Rental price.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// Of one accelerator.
    pub dollars_per_hour: f64,
}

/// What one rank reaches while others work at the same time.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Reach {
    /// Bytes/s.
    bandwidth: f64,
    /// FLOP/s.
    flops: f64,
    /// See [`Hardware::overlap`].
    overlap: f64,
    /// Seconds of a layer however little it computes.
    layer_latency: f64,
}

impl Reach {
    /// Seconds of work on `layers` layers that reads `bytes` and computes `operations`.
    pub fn seconds(&self, layers: usize, bytes: f64, operations: f64) -> f64 {
        let read = bytes / self.bandwidth;
        let computed = operations / self.flops;
        let hidden = self.overlap * read.min(computed);
        read + computed - hidden + layers as f64 * self.layer_latency
    }
}

fn one() -> f64 {
    1.0
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
        Self::parse(&text).map_err(|reason| PlanError::Hardware {
            file: name.to_owned(),
            reason,
        })
    }

    /// That of a TOML text, or what is wrong with it.
    fn parse(text: &str) -> Result<Self, String> {
        let hardware: Self = toml::from_str(text).map_err(|error| toml_fault(text, &error))?;
        match hardware.fault() {
            Some(fault) => Err(fault),
            None => Ok(hardware),
        }
    }

    /// Writes it as a file that [`open`](Self::open) reads, below a comment, and replaces what is there.
    ///
    /// # Errors
    ///
    /// When it cannot be written.
    pub fn write(&self, path: &Path, comment: &str) -> Result<(), FileError> {
        let lines = comment.lines().map(|line| format!("# {line}\n"));
        let table = toml::to_string(self).expect("numbers and names are TOML");
        durable::write(path, format!("{}\n{table}", lines.collect::<String>()))
    }

    /// A number that cannot be.
    fn fault(&self) -> Option<String> {
        let shared = self.shared.map_or(Vec::new(), |shared| {
            vec![
                ("shared.cores", shared.cores as f64),
                ("shared.memory_bandwidth", shared.memory_bandwidth),
                ("shared.peak_flops", shared.peak_flops),
            ]
        });
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
            .into_iter()
            .chain(shared)
            .find(|(_, value)| !(*value > 0.0 && value.is_finite()));
        let wrong = wrong.map(|(key, value)| format!("{key} = {value} must be above 0"));
        let shares = [
            ("flops_efficiency", self.flops_efficiency),
            ("bandwidth_efficiency", self.bandwidth_efficiency),
            ("overlap", self.overlap),
        ];
        let above = shares.iter().find(|(_, share)| *share > 1.0);
        let above = above.map(|(key, share)| format!("{key} = {share} must be at most 1"));
        let times = [
            ("overlap", self.overlap),
            ("layer_latency", self.layer_latency),
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

    /// Accelerators, or cores, of each of `ranks` ranks.
    fn accelerators(&self, ranks: usize) -> f64 {
        match self.shared {
            Some(shared) => shared.cores as f64 / ranks.min(self.node) as f64,
            None => 1.0,
        }
    }

    /// Bytes of memory for each of `ranks` ranks.
    pub(super) fn memory(&self, ranks: usize) -> f64 {
        self.memory_bytes * self.accelerators(ranks)
    }

    /// Dollars per second of `ranks` ranks together.
    pub(super) fn dollars_per_second(&self, ranks: usize) -> f64 {
        let accelerators = self.accelerators(ranks) * ranks as f64;
        self.price.dollars_per_hour / 3600.0 * accelerators
    }

    /// What one of `ranks` ranks reaches while `busy` of them work at the same time.
    pub(super) fn reach(&self, ranks: usize, busy: usize) -> Reach {
        let alone = Reach {
            bandwidth: self.memory_bandwidth * self.bandwidth_efficiency,
            flops: self.peak_flops * self.flops_efficiency,
            overlap: self.overlap,
            layer_latency: self.layer_latency,
        };
        let Some(shared) = self.shared else {
            return alone;
        };
        let threads = (shared.cores / ranks.min(self.node)).max(1) as f64;
        let working = busy.min(self.node) as f64 * threads;
        let cores = working.min(shared.cores as f64);
        let of_rank = |one: f64, all: f64| (one * cores).min(all) * threads / working;
        Reach {
            bandwidth: of_rank(
                alone.bandwidth,
                shared.memory_bandwidth * self.bandwidth_efficiency,
            ),
            flops: of_rank(alone.flops, shared.peak_flops * self.flops_efficiency),
            layer_latency: alone.layer_latency * working / cores,
            overlap: alone.overlap,
        }
    }

    /// The link that connects ranks from `first` to `last`: the slower one, if they are on several nodes.
    fn between(&self, first: usize, last: usize) -> Link {
        match first / self.node == last / self.node {
            true => self.link,
            false => self.network,
        }
    }

    /// Seconds of an all-reduce over `ranks` ranks from `first` on: recursive halving and doubling (Thakur, Rabenseifner
    /// and Gropp 2005, section 4.5), `2 log₂ n` messages, and all values but a rank's share twice over the link.
    pub(super) fn all_reduce(&self, first: usize, ranks: usize, bytes: f64) -> f64 {
        if ranks == 1 {
            return 0.0;
        }
        let link = self.between(first, first + ranks - 1);
        let n = ranks as f64;
        2.0 * n.log2().ceil() * link.latency + 2.0 * (n - 1.0) / n * bytes / link.bandwidth
    }

    /// Seconds until each of `ranks` ranks from `first` on has sent a message to the rank that is `ranks` further: those of
    /// the slowest one.
    pub(super) fn hop(&self, first: usize, ranks: usize, bytes: f64) -> f64 {
        let seconds = (first..first + ranks).map(|rank| {
            let link = self.between(rank, rank + ranks);
            link.latency + bytes / link.bandwidth
        });
        seconds.fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn by_hand() -> Hardware {
        let mut hardware = Hardware::open("a100").unwrap();
        hardware.link = Link {
            bandwidth: 10.0,
            latency: 1.0,
        };
        hardware.network = Link {
            bandwidth: 1.0,
            latency: 5.0,
        };
        (hardware.memory_bandwidth, hardware.peak_flops) = (100.0, 10.0);
        (hardware.bandwidth_efficiency, hardware.flops_efficiency) = (0.5, 0.5);
        hardware
    }

    #[test]
    fn the_known_hardware_is_valid_and_others_are_refused() {
        for (name, _) in KNOWN {
            Hardware::open(name).unwrap();
        }
        let error = Hardware::open("b900").unwrap_err().to_string();
        assert!(error.contains("a100, h100, laptop"), "{error}");
        let fault = |change: fn(&mut Hardware)| {
            let mut hardware = by_hand();
            change(&mut hardware);
            hardware.fault().unwrap()
        };
        for (found, expected) in [
            (
                fault(|hardware| hardware.link.bandwidth = 0.0),
                "link.bandwidth = 0 must be above 0",
            ),
            (
                fault(|hardware| hardware.flops_efficiency = 1.5),
                "flops_efficiency = 1.5 must be at most 1",
            ),
            (
                fault(|hardware| hardware.network.latency = -1.0),
                "network.latency = -1 must be 0 or above",
            ),
            (
                fault(|hardware| hardware.layer_latency = f64::NAN),
                "layer_latency = NaN must be 0 or above",
            ),
            (
                fault(|hardware| {
                    hardware.shared = Some(Shared {
                        cores: 0,
                        memory_bandwidth: 1.0,
                        peak_flops: 1.0,
                    });
                }),
                "shared.cores = 0 must be above 0",
            ),
        ] {
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn a_fault_of_a_file_has_its_line() {
        let (_, text) = KNOWN[0];
        let wrong = text.replace("peak_flops", "peak_flop");
        let line = wrong.lines().position(|line| line.starts_with("peak_flop"));
        let fault = Hardware::parse(&wrong).unwrap_err();
        let expected = format!("(line {})", line.unwrap() + 1);
        assert!(
            fault.contains("peak_flop") && fault.ends_with(&expected),
            "{fault}"
        );
    }

    #[test]
    fn a_written_file_is_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("mine.toml");
        let mut hardware = by_hand();
        hardware.shared = Some(Shared {
            cores: 2,
            memory_bandwidth: 1.5e10,
            peak_flops: 1e11,
        });
        hardware.write(&path, "measured\nby hand").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("# measured\n# by hand\n\nname"), "{text}");
        assert_eq!(Hardware::open(path.to_str().unwrap()).unwrap(), hardware);
    }

    #[test]
    fn messages_by_hand() {
        let hardware = by_hand();
        assert_eq!(hardware.all_reduce(0, 1, 100.0), 0.0);
        // Two levels up and down, and 3/4 of 40 bytes twice.
        assert_eq!(hardware.all_reduce(4, 4, 40.0), 4.0 + 6.0);
        // Ranks 6 to 9 are on two nodes of eight.
        assert_eq!(hardware.all_reduce(6, 4, 40.0), 20.0 + 60.0);
        assert_eq!(hardware.hop(0, 2, 20.0), 3.0);
        // Rank 7 sends to rank 9.
        assert_eq!(hardware.hop(6, 2, 20.0), 25.0);
    }

    #[test]
    fn ranks_share_the_cores_of_a_machine() {
        let mut hardware = by_hand();
        let apart = hardware.reach(4, 4);
        assert_eq!(apart, hardware.reach(1, 1));
        assert_eq!((apart.bandwidth, apart.flops), (50.0, 5.0));
        assert_eq!(
            (hardware.memory(4), hardware.dollars_per_second(4) * 3600.0),
            (80e9, 4.0)
        );
        hardware.shared = Some(Shared {
            cores: 4,
            memory_bandwidth: 200.0,
            peak_flops: 40.0,
        });
        hardware.layer_latency = 1.0;
        let reach = |ranks, busy| {
            let Reach {
                bandwidth,
                flops,
                layer_latency,
                ..
            } = hardware.reach(ranks, busy);
            [bandwidth, flops, layer_latency]
        };
        // One rank has all cores, which together read no faster than two of them.
        assert_eq!(reach(1, 1), [100.0, 20.0, 1.0]);
        assert_eq!(reach(2, 1), [100.0, 10.0, 1.0]);
        assert_eq!(reach(2, 2), [50.0, 10.0, 1.0]);
        assert_eq!(reach(4, 1), [50.0, 5.0, 1.0]);
        // Two threads on each core.
        assert_eq!(reach(8, 8), [12.5, 2.5, 2.0]);
        assert_eq!(reach(8, 2), [50.0, 5.0, 1.0]);
        assert_eq!(hardware.memory(2), 160e9);
        assert_eq!(hardware.memory(1), 320e9);
        assert_eq!(hardware.dollars_per_second(2) * 3600.0, 4.0);
    }

    #[test]
    fn work_takes_as_long_as_it_reads_or_computes() {
        let mut hardware = by_hand();
        hardware.layer_latency = 0.25;
        let reach = hardware.reach(1, 1);
        assert_eq!(reach.seconds(2, 100.0, 5.0), 2.5);
        assert_eq!(reach.seconds(0, 100.0, 15.0), 3.0);
        // Half of the shorter one is hidden, or nothing.
        hardware.overlap = 0.5;
        assert_eq!(hardware.reach(1, 1).seconds(0, 100.0, 5.0), 2.5);
        hardware.overlap = 0.0;
        assert_eq!(hardware.reach(1, 1).seconds(0, 100.0, 15.0), 5.0);
    }
}
