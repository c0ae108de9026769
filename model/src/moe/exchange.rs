//! Expert parallelism: ranks that have different experts send each other the tokens that visit them.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use burn::tensor::{IndexingUpdateOp, Int, Tensor, TensorData};
use firebox_comm::{Comm, Traffic};
use firebox_kernels::dispatch::DispatchPlan;
use firebox_kernels::{Collective, collective};

use super::experts::Experts;
use crate::parallel::share;

/// The ranks that have different experts of one model, each with tokens of its own (GShard, arXiv 2006.16668, section 3.2):
/// every token's values go to the ranks that have its experts, and their outputs come back.
///
/// All ranks compute the same number of forward passes, and backward passes of the same of them. When a message fails, the
/// rank's work ends by [`unwind`](firebox_comm::CommError::unwind).
#[derive(Debug, Clone)]
pub struct ExpertGroup {
    link: Arc<Link>,
}

/// The messages of a group.
#[derive(Debug)]
struct Link {
    comm: Arc<dyn Comm>,
    /// Nanoseconds that this rank has spent in messages, waiting for others included.
    communicating: AtomicU64,
}

impl Link {
    /// What comes from each rank for what is sent to each.
    fn all_to_all(&self, parts: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
        let started = Instant::now();
        let received = self.comm.all_to_all(parts);
        let nanoseconds = started.elapsed().as_nanos() as u64;
        self.communicating.fetch_add(nanoseconds, Ordering::Relaxed);
        received.unwrap_or_else(|error| error.unwind())
    }
}

/// Where a rank's tokens go.
struct Route {
    /// The tokens that go to each rank, one rank after the other.
    tokens: Vec<usize>,
    /// How many go to each.
    sent: Vec<usize>,
    /// The experts of the tokens that come from each rank.
    chosen: Vec<Vec<u32>>,
}

impl ExpertGroup {
    /// The ranks of a communicator, which divide the experts of every layer in their order.
    pub fn new(comm: Arc<dyn Comm>) -> Self {
        let communicating = AtomicU64::new(0);
        Self {
            link: Arc::new(Link {
                comm,
                communicating,
            }),
        }
    }

    /// This rank's place and the number of ranks.
    pub fn place(&self) -> (usize, usize) {
        (self.link.comm.rank(), self.link.comm.size())
    }

    /// What this rank has sent so far.
    pub fn traffic(&self) -> Traffic {
        self.link.comm.traffic()
    }

    /// How long this rank has spent in messages so far, waiting for others included.
    pub fn communicating(&self) -> Duration {
        Duration::from_nanos(self.link.communicating.load(Ordering::Relaxed))
    }

    /// A rank's experts of so many.
    fn experts(&self, count: usize, rank: usize) -> Range<usize> {
        share(count, self.place().1, rank)
    }

    /// The weighted sum of the outputs of each token's experts; see [`Experts::forward`]. `experts` are this rank's own.
    ///
    /// # Shapes
    ///
    /// - `x`, output: `[tokens, d_model]`
    /// - `weights`: `[tokens, top_k]`
    pub fn forward(
        &self,
        x: Tensor<2>,
        weights: Tensor<2>,
        plan: &DispatchPlan,
        experts: &Experts,
    ) -> Tensor<2> {
        let ([tokens, d_model], device) = (x.dims(), x.device());
        let (count, top_k) = (plan.experts(), plan.top_k());
        let chosen: Vec<u32> = plan.chosen().into_data().iter().collect();
        let route = self.route(&chosen, count, top_k);
        let received = route.chosen.iter().map(|chosen| chosen.len() / top_k);
        let there = Arc::new(Exchange {
            link: Arc::clone(&self.link),
            sent: route.sent,
            received: received.collect(),
        });
        let ids: Vec<i32> = route.tokens.iter().map(|&token| token as i32).collect();
        let length = ids.len();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [length]), &device);

        // A token's values, and beside them the weights of its experts.
        let rows = Tensor::cat(vec![x, weights], 1).select(0, ids.clone());
        let rows = collective(rows, Arc::clone(&there) as Arc<dyn Collective>);
        let x = rows.clone().narrow(1, 0, d_model);
        let weights = rows.narrow(1, d_model, top_k);
        let own = self.experts(count, self.place().0);
        let plan = DispatchPlan::new(&route.chosen.concat(), count, top_k, &device).part(own);
        let outputs = experts.forward(x, weights, &plan);
        let outputs = collective(outputs, Arc::new(there.back()));
        Tensor::zeros([tokens, d_model], &device).select_assign(
            0,
            ids,
            outputs,
            IndexingUpdateOp::Add,
        )
    }

    /// Tells all ranks which of their experts this rank's tokens visit.
    fn route(&self, chosen: &[u32], count: usize, top_k: usize) -> Route {
        let mut tokens = Vec::new();
        let mut sent = Vec::new();
        let mut messages = Vec::new();
        for rank in 0..self.place().1 {
            let experts = self.experts(count, rank);
            let visits = |chosen: &[u32]| chosen.iter().any(|&e| experts.contains(&(e as usize)));
            let before = tokens.len();
            let visitors = chosen.chunks(top_k).enumerate();
            tokens.extend(visitors.filter_map(|(token, chosen)| visits(chosen).then_some(token)));
            if tokens.len() == before {
                // No tensor is empty. This rank's experts give nothing for it.
                tokens.push(0);
            }
            sent.push(tokens.len() - before);
            let own = tokens[before..].iter();
            let own = own.flat_map(|token| &chosen[token * top_k..][..top_k]);
            messages.push(own.flat_map(|expert| expert.to_le_bytes()).collect());
        }
        let received = self.link.all_to_all(messages);
        let chosen = received.iter().map(|bytes| {
            let experts = bytes.as_chunks::<4>().0.iter();
            experts.map(|&expert| u32::from_le_bytes(expert)).collect()
        });
        Route {
            chosen: chosen.collect(),
            tokens,
            sent,
        }
    }
}

/// Rows that go to each rank and come from each.
#[derive(Debug)]
struct Exchange {
    link: Arc<Link>,
    sent: Vec<usize>,
    received: Vec<usize>,
}

impl Exchange {
    /// The way back.
    fn back(&self) -> Self {
        Self {
            link: Arc::clone(&self.link),
            sent: self.received.clone(),
            received: self.sent.clone(),
        }
    }

    /// Sends so many rows to each rank, one rank's after the other's, and returns those of all ranks, in their order.
    fn exchanged(&self, rows: &[f32], width: usize, counts: &[usize]) -> Vec<f32> {
        let mut rest = rows;
        let parts = counts.iter().map(|count| {
            let (own, after) = rest.split_at(count * width);
            rest = after;
            bytemuck::cast_slice(own).to_vec()
        });
        let received = self.link.all_to_all(parts.collect()).concat();
        let mut values = vec![0.0; received.len() / size_of::<f32>()];
        bytemuck::cast_slice_mut(&mut values).copy_from_slice(&received);
        values
    }
}

impl Collective for Exchange {
    fn forward(&self, rows: Vec<f32>, width: usize) -> Vec<f32> {
        self.exchanged(&rows, width, &self.sent)
    }

    fn backward(&self, gradient: Vec<f32>, width: usize) -> Vec<f32> {
        self.exchanged(&gradient, width, &self.received)
    }
}
