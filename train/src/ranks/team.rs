//! The ranks of a run, as one of them sees them.

use std::collections::BTreeMap;
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
use firebox_model::parallel::{Shard, TensorGroup, share};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::{Holders, TrainLayout};

/// The ranks that train one model together, as one of them sees them: a single rank, or one of several.
#[derive(Debug, Clone, Default)]
pub struct Team {
    layout: TrainLayout,
    /// `None` for a single rank.
    groups: Option<Groups>,
    /// Nanoseconds that this rank has spent in messages but those of gradients and weights, waiting for others included.
    communicating: Arc<AtomicU64>,
    /// Nanoseconds that it has spent in those, as far as they have not been asked for.
    exchanging: Arc<AtomicU64>,
    /// Bytes of gradients and weights that have been counted.
    counted: Arc<AtomicU64>,
}

/// The groups that a rank is in.
#[derive(Debug, Clone)]
struct Groups {
    /// All ranks, and those that have the same parts of what is divided.
    holders: BTreeMap<Holders, Arc<dyn Comm>>,
    /// Those that have the other experts; `None` where each rank has all.
    experts: Option<ExpertGroup>,
    /// Those that have the other parts of its matrices; `None` where each rank has all.
    tensor: Option<TensorGroup>,
}

/// What a rank did in a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct RankRecord {
    /// Sequences of its share of the batch.
    pub sequences: usize,
    /// Seconds in which it computed the gradient of its share.
    pub computing: f64,
    /// Seconds that it spent in messages meanwhile, of expert load, tokens and their sums, waiting for others included.
    pub communicating: f64,
    /// Seconds that it spent in messages of gradients afterwards, and of weights after the step before, waiting for others
    /// included.
    pub exchanging: f64,
    /// Bytes of gradients that it handed over afterwards, and of weights after the step before.
    pub bytes: u64,
    /// Bytes of tokens that it sent to other ranks' experts and back.
    pub token_bytes: u64,
    /// Bytes of tokens that it added up with the other tensor ranks of its share, and told them of logits.
    pub sum_bytes: u64,
}

/// A rank that computes for longer than this times the median of all, for each sequence, is slow.
pub const SLOW: f64 = 1.5;

/// Seconds that a rank may always take: how long short steps take is chance.
pub const SHORT: f64 = 0.2;

impl RankRecord {
    /// Seconds in which it computed, for each sequence of its share.
    pub fn seconds_per_sequence(&self) -> f64 {
        self.computing / self.sequences.max(1) as f64
    }
}

/// How long each of some ranks takes, relative to their median; of two ranks, to the faster one.
pub fn relative_to_median(seconds: &[f64]) -> Vec<f64> {
    let mut sorted = seconds.to_vec();
    sorted.sort_by(f64::total_cmp);
    let median = sorted.get(seconds.len().saturating_sub(1) / 2);
    let median = median.map_or(0.0, |&median| median.max(f64::MIN_POSITIVE));
    seconds.iter().map(|seconds| seconds / median).collect()
}

/// A warning if the others wait for a rank that is slow.
pub fn slow_rank(ranks: &[RankRecord]) -> Option<String> {
    let seconds: Vec<f64> = ranks.iter().map(RankRecord::seconds_per_sequence).collect();
    let relative = relative_to_median(&seconds).into_iter().enumerate();
    let (slowest, relative) = relative.max_by(|(_, a), (_, b)| a.total_cmp(b))?;
    let computing = ranks[slowest].computing;
    (computing > SHORT && relative > SLOW).then(|| {
        format!(
            "rank {slowest} is slow: it computed for {computing:.2} s, {relative:.1} times as long for each sequence as the median of the {} ranks",
            ranks.len()
        )
    })
}

impl Groups {
    /// Collective over all ranks.
    fn new(world: Arc<dyn Comm>, layout: TrainLayout) -> Self {
        let rank = world.rank();
        let (share, part) = (layout.share_of(rank), rank % layout.tensor);
        let kinds = [false, true].map(|experts| [false, true].map(|matrices| (experts, matrices)));
        let divided = kinds.into_iter().flatten().filter(|&(experts, matrices)| {
            (!experts || layout.expert > 1) && (!matrices || layout.tensor > 1)
        });
        let mut holders = BTreeMap::from([(Holders::ALL, Arc::clone(&world))]);
        for (experts, matrices) in divided.skip(1) {
            let kind = Holders { experts, matrices };
            holders.insert(kind, unwound(world.split(layout.part(kind, rank))));
        }
        let experts = (layout.expert > 1).then(|| {
            let copy = share / layout.expert;
            ExpertGroup::new(unwound(world.split(copy * layout.tensor + part)))
        });
        let tensor = (layout.tensor > 1).then(|| TensorGroup::new(unwound(world.split(share))));
        Self {
            holders,
            experts,
            tensor,
        }
    }
}

impl Team {
    /// A rank of a layout; collective over all ranks.
    ///
    /// # Panics
    ///
    /// When there are not as many ranks as in the layout.
    pub fn new(world: Arc<dyn Comm>, layout: TrainLayout) -> Self {
        assert_eq!(world.size(), layout.ranks(), "ranks of {layout}");
        let groups = (layout.ranks() > 1).then(|| Groups::new(world, layout));
        Self {
            layout,
            groups,
            communicating: Arc::default(),
            exchanging: Arc::default(),
            counted: Arc::default(),
        }
    }

    fn world(&self) -> Option<&Arc<dyn Comm>> {
        self.group(Holders::ALL)
    }

    fn group(&self, holders: Holders) -> Option<&Arc<dyn Comm>> {
        self.groups.as_ref().map(|groups| &groups.holders[&holders])
    }

    /// One rank of each share of a batch: those that have the same part of the matrices.
    fn of_shares(&self) -> Option<&Arc<dyn Comm>> {
        self.group(Holders {
            experts: false,
            matrices: self.layout.tensor > 1,
        })
    }

    /// The part of a model that this rank has; `None` for all of it.
    ///
    /// # Panics
    ///
    /// When the layout does not [fit](TrainLayout::check).
    pub fn shard(&self, config: &ModelConfig) -> Option<Shard> {
        self.layout.shard(config, self.rank())
    }

    /// A rank's part of a model, among the ranks that have its other experts, and the other parts of its matrices.
    #[must_use]
    pub fn joined(&self, model: LanguageModel) -> LanguageModel {
        let model = match self.experts() {
            Some(experts) => model.among_experts(experts),
            None => model,
        };
        match self.tensor() {
            Some(tensor) => model.among(tensor.clone()),
            None => model,
        }
    }

    /// Whether ranks with other shares of a batch have to compute as many forward passes: they send each other tokens
    /// meanwhile.
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
        let layout = self.layout;
        share(rows, layout.shares(), layout.share_of(self.rank()))
    }

    /// Says what this rank is about to do, for the sentence that others print if it fails.
    pub fn doing(&self, what: std::fmt::Arguments<'_>) {
        if let Some(world) = self.world() {
            world.doing(what);
        }
    }

    /// What every rank says, in the order of the ranks.
    pub fn all<T: Serialize + DeserializeOwned>(&self, own: T) -> Vec<T> {
        self.said(self.world(), own)
    }

    /// What the ranks say, in the order of the shares of a batch, one of each; those of a share say the same.
    pub fn all_shares<T: Serialize + DeserializeOwned>(&self, own: T) -> Vec<T> {
        self.said(self.of_shares(), own)
    }

    fn said<T: Serialize + DeserializeOwned>(
        &self,
        group: Option<&Arc<dyn Comm>>,
        own: T,
    ) -> Vec<T> {
        let Some(group) = group else {
            return vec![own];
        };
        let own = encoded(&own);
        let all = timed(&self.communicating, || group.all_gather(&own));
        all.iter().map(|said| decoded(said)).collect()
    }

    /// Whether any rank says so.
    pub fn any(&self, own: bool) -> bool {
        self.all(own).contains(&true)
    }

    /// Adds up the tokens per expert of all shares of a batch, layer by layer.
    pub fn add_up(&self, load: TokensPerExpert) -> TokensPerExpert {
        let Some(group) = self.of_shares() else {
            return load;
        };
        let tokens = self.all_shares(load.tokens).iter().sum();
        let Some(first) = load.counts.first() else {
            return TokensPerExpert { tokens, ..load };
        };
        let (device, layers) = (first.device(), load.counts.len());
        let mut counts: Vec<f32> = host(Tensor::cat(load.counts, 0));
        timed(&self.communicating, || group.all_reduce_sum(&mut counts));
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
        if let Some(comm) = self.others(holders) {
            timed(&self.exchanging, || comm.reduce_scatter_sum(values, ends));
        }
    }

    /// Gives each holder's part of a vector to all of them.
    pub fn gather_parts(&self, holders: Holders, values: &mut [f32], ends: &[usize]) {
        if let Some(comm) = self.others(holders) {
            timed(&self.exchanging, || comm.all_gather_parts(values, ends));
        }
    }

    /// A group with others in it.
    fn others(&self, holders: Holders) -> Option<&Arc<dyn Comm>> {
        self.group(holders).filter(|group| group.size() > 1)
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
        let now = groups.holders.values().map(|group| {
            let kinds = [Operation::ReduceScatterSum, Operation::AllGatherParts];
            let traffic = group.traffic();
            kinds.map(|kind| traffic.of(kind).bytes).iter().sum::<u64>()
        });
        let now = now.sum();
        now - self.counted.swap(now, Ordering::Relaxed)
    }

    /// Bytes of tokens that this rank has sent to experts and back so far.
    pub fn token_bytes(&self) -> u64 {
        let experts = self.experts().map(ExpertGroup::traffic);
        experts.map_or(0, |traffic| traffic.of(Operation::AllToAll).bytes)
    }

    /// Bytes of tokens that this rank has added up with other tensor ranks so far, and told them of logits.
    pub fn sum_bytes(&self) -> u64 {
        self.tensor().map_or(0, |tensor| {
            let traffic = tensor.comm().traffic();
            let kinds = [Operation::AllReduceSum, Operation::AllGather];
            kinds.map(|kind| traffic.of(kind).bytes).iter().sum()
        })
    }

    /// The ranks that have the other experts of its copy of the model.
    fn experts(&self) -> Option<&ExpertGroup> {
        self.groups.as_ref()?.experts.as_ref()
    }

    /// The ranks that have the other parts of its matrices.
    fn tensor(&self) -> Option<&TensorGroup> {
        self.groups.as_ref()?.tensor.as_ref()
    }

    /// How long this rank has spent in messages of gradients and weights since this was asked last.
    pub fn exchanging_since_last(&self) -> Duration {
        Duration::from_nanos(self.exchanging.swap(0, Ordering::Relaxed))
    }

    /// How long this rank has spent in other messages so far.
    pub fn communicating(&self) -> Duration {
        let own = Duration::from_nanos(self.communicating.load(Ordering::Relaxed));
        let tokens = self.experts().map(ExpertGroup::communicating);
        let sums = self.tensor().map(TensorGroup::communicating);
        own + tokens.unwrap_or_default() + sums.unwrap_or_default()
    }
}

/// Sends and receives, and adds the nanoseconds that this takes to a count.
fn timed<T>(count: &AtomicU64, work: impl FnOnce() -> Result<T, CommError>) -> T {
    let started = Instant::now();
    let result = work();
    let nanoseconds = started.elapsed().as_nanos() as u64;
    count.fetch_add(nanoseconds, Ordering::Relaxed);
    unwound(result)
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
            exchanging: 0.0,
            bytes: 0,
            token_bytes: 0,
            sum_bytes: 0,
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
