//! The dispatch plan: assignments sorted by expert.

use std::ops::Range;
use std::sync::Arc;

use burn::backend::Dispatch;
use burn::tensor::{Device, Int, Tensor, TensorData};

use super::{DispatchBackend, HostPlan, Tables, reference};
use firebox_runtime::device::{Kernels, is_host, kernels};

/// Which row of the experts' work belongs to which assignment.
///
/// Assignment `a` is the `a % k`-th choice of token `a / k`. Rows are the assignments sorted by expert,
/// in the order of tokens within an expert. The plan lives where the tensors live: nothing but what says so
/// reads it back to the host.
#[derive(Debug, Clone)]
pub struct DispatchPlan {
    tokens: usize,
    experts: usize,
    top_k: usize,
    device: Device,
    tables: Tables<Dispatch>,
    /// Whether it has all experts.
    is_whole: bool,
}

impl DispatchPlan {
    /// Gives each token the `top_k` experts with the largest `score + bias`, largest first and of equal
    /// ones the lower number, on every device.
    ///
    /// # Shapes
    ///
    /// - `scores`: `[tokens, experts]`; no gradient passes the choice
    /// - `bias`: one value an expert, or none
    ///
    /// # Panics
    ///
    /// When there are fewer experts than `top_k`.
    pub fn choose(scores: &Tensor<2>, bias: &[f32], top_k: usize) -> Self {
        let [tokens, experts] = scores.dims();
        assert!(
            (1..=experts).contains(&top_k),
            "{top_k} of {experts} experts"
        );
        let scores = scores.clone().inner();
        let device = scores.device();
        let bias = match bias {
            [] => Tensor::<1>::zeros([experts], &device),
            bias => Tensor::from_floats(bias, &device),
        };
        if kernels(&device) == Kernels::None {
            let chosen = integers(&reference::choose(scores, bias, top_k));
            return Self::new(&chosen, experts, top_k, &device);
        }
        let tables = <Dispatch as DispatchBackend>::choose(
            scores.into_dispatch(),
            bias.into_dispatch(),
            top_k,
        );
        Self {
            tokens,
            experts,
            top_k,
            device,
            tables,
            is_whole: true,
        }
    }

    /// The plan of a choice that was made elsewhere: the experts of each token side by side, `top_k` a
    /// token.
    ///
    /// # Panics
    ///
    /// When the length of `chosen` is not a multiple of `top_k`, or an index is not below `experts`.
    pub fn new(chosen: &[u32], experts: usize, top_k: usize, device: &Device) -> Self {
        let host = HostPlan::new(chosen, experts, top_k);
        let device = device.clone().inner();
        let tokens = chosen.len() / top_k;
        let tables = match is_host(&device) {
            true => Tables::Host(Arc::new(host)),
            false => upload(&host, &device),
        };
        Self {
            tokens,
            experts,
            top_k,
            device,
            tables,
            is_whole: true,
        }
    }

    /// The plan of some of the experts, of all tokens, for a rank that has these alone: it gives only these experts'
    /// contribution, which is zero for tokens that are routed to none of them. It lies on the host; a choice on another device
    /// is read back.
    ///
    /// # Panics
    ///
    /// When there are no such experts.
    #[must_use]
    pub fn part(&self, experts: Range<usize>) -> Self {
        Self {
            experts: experts.len(),
            tables: Tables::Host(Arc::new(self.to_host().part(experts))),
            is_whole: false,
            ..self.clone()
        }
    }

    /// Whether it has all experts, and is no [`part`](Self::part).
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// Number of tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Number of experts (E).
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Experts that each token visits (k).
    pub fn top_k(&self) -> usize {
        self.top_k
    }

    /// The experts of each token, `[tokens, top_k]`.
    pub fn chosen(&self) -> Tensor<2, Int> {
        match &self.tables {
            Tables::Host(plan) => indices(
                plan.expert_of_assignment.iter().copied(),
                [self.tokens, self.top_k],
                &self.device,
            ),
            Tables::Device { chosen, .. } => Tensor::from_dispatch(chosen.clone()),
        }
    }

    /// Assignments to each expert of a whole plan from the tokens that `valid` marks; from all when it is absent. Padding is
    /// computed like any token but is not counted. Exact up to 2²⁴ assignments of one expert.
    ///
    /// # Shapes
    ///
    /// - `valid`: `[tokens]`, 1 for a token and 0 for padding
    /// - output: `[experts]`, without gradients
    ///
    /// # Panics
    ///
    /// When the plan is a part.
    pub fn load(&self, valid: Option<&Tensor<1>>) -> Tensor<1> {
        assert!(self.is_whole, "the load of all experts");
        let valid = match valid {
            Some(valid) => valid.clone().inner(),
            None => Tensor::ones([self.tokens], &self.device),
        };
        if kernels(&self.device) == Kernels::None {
            return reference::load(&self.chosen(), self.experts, valid);
        }
        let load = <Dispatch as DispatchBackend>::load(valid.into_dispatch(), self.tables.clone());
        Tensor::from_dispatch(load)
    }

    /// For the kernels.
    pub(crate) fn tables(&self) -> &Tables<Dispatch> {
        &self.tables
    }

    /// The plan on the host; reads the choice back from another device.
    pub fn to_host(&self) -> Arc<HostPlan> {
        match &self.tables {
            Tables::Host(plan) => plan.clone(),
            Tables::Device { .. } => {
                let chosen = integers(&self.chosen());
                Arc::new(HostPlan::new(&chosen, self.experts, self.top_k))
            }
        }
    }
}

/// Indices on the host.
fn integers(indices: &Tensor<2, Int>) -> Vec<u32> {
    let data = indices.to_data();
    data.iter::<i64>().map(|index| index as u32).collect()
}

fn upload(plan: &HostPlan, device: &Device) -> Tables<Dispatch> {
    let assignments = plan.expert_of_assignment.len();
    let mut assignment_of_row = vec![0; assignments];
    for (assignment, &row) in plan.row_of_assignment.iter().enumerate() {
        assignment_of_row[row as usize] = assignment as u32;
    }
    let table = |values: Vec<u32>| {
        let length = values.len();
        indices(values.into_iter(), [length], device).into_dispatch()
    };
    Tables::Device {
        chosen: indices(
            plan.expert_of_assignment.iter().copied(),
            [assignments / plan.top_k, plan.top_k],
            device,
        )
        .into_dispatch(),
        assignment_of_row: table(assignment_of_row),
        row_of_assignment: table(plan.row_of_assignment.clone()),
        offsets: table(plan.offsets.iter().map(|&offset| offset as u32).collect()),
    }
}

fn indices<const D: usize>(
    values: impl Iterator<Item = u32>,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D, Int> {
    let values: Vec<i32> = values.map(|value| value as i32).collect();
    Tensor::from_data(TensorData::new(values, shape), device)
}
