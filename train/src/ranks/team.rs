//! The ranks of a run, as one of them sees them.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use burn::tensor::{Tensor, TensorData};
use firebox_comm::{Comm, CommError, Operation};
use firebox_model::config::ModelConfig;
use firebox_model::language_model::LanguageModel;
use firebox_model::moe::balance::TokensPerExpert;
use firebox_model::moe::exchange::ExpertGroup;
use firebox_model::parallel::{Shard, share};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::TrainLayout;

/// The ranks that train one model together, as one of them sees them: a single rank, or one of several.
#[derive(Debug, Clone, Default)]
pub struct Team {
    layout: TrainLayout,
    /// `None` for a single rank.
    groups: Option<Groups>,
    /// Nanoseconds that this rank has spent in messages, waiting for others included.
    communicating: Arc<AtomicU64>,
    /// Bytes of gradients and weights that have been counted.
    counted: Arc<AtomicU64>,
}

/// The groups that a rank is in.
#[derive(Debug, Clone)]
struct Groups {
    /// All ranks.
    world: Arc<dyn Comm>,
    /// Those that have the same experts.
    replicas: Arc<dyn Comm>,
    /// Those that have the other experts; `None` where each rank has all.
    experts: Option<ExpertGroup>,
}

/// Ranks that have the same values of a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holders {
    /// All ranks.
    All,
    /// Those that have the same experts.
    Replicas,
}

/// What a rank did in a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RankRecord {
    /// Sequences of its share of the batch.
    pub sequences: usize,
    /// Seconds in which it computed the gradient of its share.
    pub computing: f64,
    /// Seconds that it spent in messages meanwhile, of expert load and of tokens, waiting for others included.
    pub communicating: f64,
    /// Bytes of gradients that it handed over afterwards, and of weights after the step before.
    pub bytes: u64,
    /// Bytes of tokens that it sent to other ranks' experts and back.
    pub token_bytes: u64,
}

/// A rank that computes for longer than this times the median of all, for each sequence, is slow.
const SLOW: f64 = 1.5;

/// Seconds that a rank may always take: how long short steps take is chance.
const SHORT: f64 = 0.2;

/// A warning if the others wait for a rank that is slow.
pub fn slow_rank(ranks: &[RankRecord]) -> Option<String> {
    let each = |rank: &RankRecord| rank.computing / rank.sequences.max(1) as f64;
    let mut sorted: Vec<f64> = ranks.iter().map(each).collect();
    sorted.sort_by(f64::total_cmp);
    // Of two ranks, that of the faster one.
    let median = *sorted.get(ranks.len().checked_sub(1)? / 2)?;
    let by_speed =
        |(_, a): &(usize, &RankRecord), (_, b): &(usize, &RankRecord)| each(a).total_cmp(&each(b));
    let (slowest, record) = ranks.iter().enumerate().max_by(by_speed)?;
    let is_slow = record.computing > SHORT && each(record) > SLOW * median;
    is_slow.then(|| {
        format!(
            "rank {slowest} is slow: it computed for {:.2} s, {:.1} times as long for each sequence as the median of the {} ranks",
            record.computing,
            each(record) / median,
            ranks.len()
        )
    })
}

impl Team {
    /// A rank of a layout; collective over all ranks.
    ///
    /// # Panics
    ///
    /// When there are not as many ranks as in the layout.
    pub fn new(world: Arc<dyn Comm>, layout: TrainLayout) -> Self {
        assert_eq!(world.size(), layout.ranks(), "ranks of {layout}");
        let groups = (layout.ranks() > 1).then(|| {
            let rank = world.rank();
            let replicas = unwound(world.split(rank % layout.expert));
            let experts = (layout.expert > 1)
                .then(|| ExpertGroup::new(unwound(world.split(rank / layout.expert))));
            Groups {
                world,
                replicas,
                experts,
            }
        });
        Self {
            layout,
            groups,
            communicating: Arc::default(),
            counted: Arc::default(),
        }
    }

    fn world(&self) -> Option<&Arc<dyn Comm>> {
        self.groups.as_ref().map(|groups| &groups.world)
    }

    /// The part of a model that this rank has; `None` for all of it.
    ///
    /// # Panics
    ///
    /// When the layout does not [fit](TrainLayout::check).
    pub fn shard(&self, config: &ModelConfig) -> Option<Shard> {
        let ranks = self.layout.expert;
        (ranks > 1).then(|| {
            let shard = Shard::of_training(config, (0, 1), (self.rank() % ranks, ranks));
            shard.expect("a layout that was checked")
        })
    }

    /// A rank's part of a model, among the ranks that have its other experts.
    #[must_use]
    pub fn joined(&self, model: LanguageModel) -> LanguageModel {
        match self.experts() {
            Some(experts) => model.among_experts(experts),
            None => model,
        }
    }

    /// Whether all ranks have to compute as many forward passes: they send each other tokens meanwhile.
    pub fn computes_together(&self) -> bool {
        self.layout.expert > 1
    }

    /// The layout.
    pub fn layout(&self) -> TrainLayout {
        self.layout
    }

    /// This rank's number.
    pub fn rank(&self) -> usize {
        self.world().map_or(0, |world| world.rank())
    }

    /// Number of ranks.
    pub fn size(&self) -> usize {
        self.layout.ranks()
    }

    /// Whether this is the only rank.
    pub fn is_alone(&self) -> bool {
        self.groups.is_none()
    }

    /// Whether this is the rank that writes checkpoints and metrics, and tells how far the run is.
    pub fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// This rank's share of so many rows of a batch.
    pub fn share(&self, rows: usize) -> Range<usize> {
        share(rows, self.size(), self.rank())
    }

    /// Says what this rank is about to do, for the sentence that others print if it fails.
    pub fn doing(&self, what: std::fmt::Arguments<'_>) {
        if let Some(world) = self.world() {
            world.doing(what);
        }
    }

    /// What every rank says, in the order of the ranks.
    pub fn all<T: Serialize + DeserializeOwned>(&self, own: T) -> Vec<T> {
        let Some(world) = self.world() else {
            return vec![own];
        };
        let own = encoded(&own);
        let all = self.timed(|| world.all_gather(&own));
        all.iter().map(|said| decoded(said)).collect()
    }

    /// Whether any rank says so.
    pub fn any(&self, own: bool) -> bool {
        self.all(own).contains(&true)
    }

    /// Adds up the tokens per expert of all ranks, layer by layer.
    pub fn add_up(&self, load: TokensPerExpert) -> TokensPerExpert {
        let Some(world) = self.world() else {
            return load;
        };
        let tokens = self.all(load.tokens).iter().sum();
        let Some(first) = load.counts.first() else {
            return TokensPerExpert { tokens, ..load };
        };
        let (device, layers) = (first.device(), load.counts.len());
        let mut counts: Vec<f32> = host(Tensor::cat(load.counts, 0));
        self.timed(|| world.all_reduce_sum(&mut counts));
        let experts = counts.len() / layers;
        let counts = counts.chunks(experts).map(|counts| {
            let counts = TensorData::new(counts.to_vec(), [experts]);
            Tensor::from_data(counts, &device)
        });
        TokensPerExpert {
            counts: counts.collect(),
            tokens,
        }
    }

    /// Adds up a vector over its holders; each gets its part, which ends at its number among them in `ends`.
    pub fn reduce_scatter(&self, holders: Holders, values: &mut [f32], ends: &[usize]) {
        if let Some(comm) = self.group(holders) {
            self.timed(|| comm.reduce_scatter_sum(values, ends));
        }
    }

    /// Gives each holder's part of a vector to all of them.
    pub fn gather_parts(&self, holders: Holders, values: &mut [f32], ends: &[usize]) {
        if let Some(comm) = self.group(holders) {
            self.timed(|| comm.all_gather_parts(values, ends));
        }
    }

    fn group(&self, holders: Holders) -> Option<&Arc<dyn Comm>> {
        self.groups.as_ref().map(|groups| match holders {
            Holders::All => &groups.world,
            Holders::Replicas => &groups.replicas,
        })
    }

    /// What the first rank has to say to all of them; the others wait for it, however long that takes.
    ///
    /// # Errors
    ///
    /// Those of `work`, which only the first rank does. The others are told nothing then.
    pub fn told_by_first<T: Serialize + DeserializeOwned, E>(
        &self,
        work: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let Some(world) = self.world() else {
            return work();
        };
        if !self.is_first() {
            return Ok(decoded(&unwound(world.wait(0))));
        }
        let told = work()?;
        let message = encoded(&told);
        (1..self.size()).for_each(|other| unwound(world.send(other, &message)));
        Ok(told)
    }

    /// The values that another rank keeps under a name; see [`answer`](Self::answer).
    pub fn ask(&self, rank: usize, name: &str) -> Vec<f32> {
        let world = self.world().expect("another rank");
        unwound(world.send(rank, name.as_bytes()));
        floats(&unwound(world.wait(rank)))
    }

    /// Ends [`answer`](Self::answer) on all other ranks.
    pub fn dismiss(&self) {
        if let Some(world) = self.world() {
            (1..self.size()).for_each(|other| unwound(world.send(other, &[])));
        }
    }

    /// Gives the first rank the values that this one keeps, until it [dismisses](Self::dismiss) this one.
    pub fn answer(&self, values: impl Fn(&str) -> Vec<f32>) {
        let world = self.world().expect("a first rank beside this one");
        loop {
            let asked = unwound(world.wait(0));
            if asked.is_empty() {
                return;
            }
            let name = String::from_utf8(asked).expect("a name");
            unwound(world.send(0, &bytes(&values(&name))));
        }
    }

    /// Bytes of gradients and weights that this rank has handed to messages since this was asked last.
    pub fn bytes_since_last(&self) -> u64 {
        let Some(groups) = &self.groups else {
            return 0;
        };
        let groups = [&groups.world, &groups.replicas];
        let now = groups.map(|group| {
            let kinds = [Operation::ReduceScatterSum, Operation::AllGatherParts];
            let traffic = group.traffic();
            kinds.map(|kind| traffic.of(kind).bytes).iter().sum::<u64>()
        });
        let now = now.iter().sum();
        now - self.counted.swap(now, Ordering::Relaxed)
    }

    /// Bytes of tokens that this rank has sent to experts and back so far.
    pub fn token_bytes(&self) -> u64 {
        let experts = self.experts().map(ExpertGroup::traffic);
        experts.map_or(0, |traffic| traffic.of(Operation::AllToAll).bytes)
    }

    /// The ranks that have the other experts of its copy of the model.
    fn experts(&self) -> Option<&ExpertGroup> {
        self.groups.as_ref()?.experts.as_ref()
    }

    /// How long this rank has spent in messages so far.
    pub fn communicating(&self) -> Duration {
        let own = Duration::from_nanos(self.communicating.load(Ordering::Relaxed));
        let tokens = self.experts().map(ExpertGroup::communicating);
        own + tokens.unwrap_or_default()
    }

    fn timed<T>(&self, work: impl FnOnce() -> Result<T, CommError>) -> T {
        let started = Instant::now();
        let result = work();
        let nanoseconds = started.elapsed().as_nanos() as u64;
        self.communicating.fetch_add(nanoseconds, Ordering::Relaxed);
        unwound(result)
    }
}

/// The values of a tensor in f32, on the host.
pub(crate) fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    let data = tensor.into_data();
    data.try_into_vec().expect("values in f32")
}

fn unwound<T>(result: Result<T, CommError>) -> T {
    result.unwrap_or_else(|error| error.unwind())
}

fn encoded(message: &impl Serialize) -> Vec<u8> {
    postcard::to_allocvec(message).expect("a message that can be written")
}

fn decoded<T: DeserializeOwned>(message: &[u8]) -> T {
    postcard::from_bytes(message).expect("a message of the same program")
}

/// Values as they go into a message.
fn bytes(values: &[f32]) -> Vec<u8> {
    let values = values.iter().flat_map(|value| value.to_le_bytes());
    values.collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let values = bytes.as_chunks::<4>().0.iter();
    values.map(|&value| f32::from_le_bytes(value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_rank_is_named() {
        let record = |(sequences, computing)| RankRecord {
            sequences,
            computing,
            communicating: 0.0,
            bytes: 0,
            token_bytes: 0,
        };
        let warning = |ranks: &[(usize, f64)]| {
            let ranks: Vec<RankRecord> = ranks.iter().copied().map(record).collect();
            slow_rank(&ranks)
        };
        let said = warning(&[(4, 1.0), (4, 1.1), (4, 2.2), (4, 0.9)]).unwrap();
        assert!(
            said.starts_with("rank 2 is slow: it computed for 2.20 s, 2.2 times"),
            "{said}"
        );
        assert!(
            warning(&[(4, 1.0), (4, 1.7)])
                .unwrap()
                .starts_with("rank 1 ")
        );
        // Two sequences take twice as long as one.
        assert_eq!(warning(&[(2, 1.0), (2, 1.1), (1, 0.5), (1, 0.6)]), None);
        assert_eq!(warning(&[(1, 0.001), (1, 0.1), (1, 0.001)]), None);
        assert_eq!(warning(&[]), None);
    }
}
