//! The choice of experts and the tables of the dispatch plan, computed where the tensors live.
//!
//! `flex` chooses and sorts on the host (`host.rs`). The CubeCL backends do both on the device (`cube.rs`), so that a
//! training step there never waits for a choice to be read back. Devices without kernels choose by plain tensor
//! operations (`reference.rs`), and only sort on the host.

#[cfg(feature = "cube")]
mod cube;
mod host;
mod plan;
mod reference;

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, ExtensionType, TensorMetadata, backend_extension};

use super::host::Host;
pub use host::{ELSEWHERE, HostPlan};
pub use plan::DispatchPlan;

/// The tables of a dispatch plan.
///
/// Assignment `a` is the `a % k`-th choice of token `a / k`. Rows are the assignments sorted by expert, in the
/// order of tokens within an expert.
#[derive(Debug, Clone, ExtensionType)]
pub enum Tables<B: Backend> {
    /// In this machine's memory, for `flex` and `ndarray`.
    Host(Arc<HostPlan>),
    /// On the device, for the CubeCL backends; all i32.
    Device {
        /// The expert of each assignment, `[tokens, top_k]`.
        chosen: IntTensor<B>,
        /// The assignment that a row belongs to, `[tokens · top_k]`.
        assignment_of_row: IntTensor<B>,
        /// The row that an assignment went to, `[tokens · top_k]`.
        row_of_assignment: IntTensor<B>,
        /// Rows `offsets[e] .. offsets[e + 1]` belong to expert e, `[experts + 1]`.
        offsets: IntTensor<B>,
    },
}

impl<B: Backend, C: CheckpointStrategy> Tables<Autodiff<B, C>> {
    /// The same without autodiff, which has no part in integers.
    pub fn without_autodiff(self) -> Tables<B> {
        match self {
            Self::Host(plan) => Tables::Host(plan),
            Self::Device {
                chosen,
                assignment_of_row,
                row_of_assignment,
                offsets,
            } => Tables::Device {
                chosen,
                assignment_of_row,
                row_of_assignment,
                offsets,
            },
        }
    }
}

/// The backends' side of [`DispatchPlan`].
#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube")
)]
pub trait DispatchBackend: Backend {
    /// Gives each token the `top_k` experts with the largest `score + bias`, largest first and of equal
    /// ones the lower number, and sorts the assignments by expert.
    ///
    /// # Shapes
    ///
    /// - `scores`: `[tokens, experts]`
    /// - `bias`: `[experts]`
    fn choose(scores: FloatTensor<Self>, bias: FloatTensor<Self>, top_k: usize) -> Tables<Self>;

    /// Assignments to each expert from the tokens that `valid` marks.
    ///
    /// # Shapes
    ///
    /// - `valid`: `[tokens]`, 1 for a token and 0 for padding
    /// - output: `[experts]`
    fn load(valid: FloatTensor<Self>, #[extension_type] tables: Tables<Self>) -> FloatTensor<Self>;
}

impl<B: Host> DispatchBackend for B {
    fn choose(scores: FloatTensor<Self>, bias: FloatTensor<Self>, top_k: usize) -> Tables<Self> {
        let [_, experts] = scores.shape().dims();
        let (scores, bias) = (B::values(&scores), B::values(&bias));
        let chosen = host::choose(&scores, &bias, experts, top_k);
        Tables::Host(Arc::new(HostPlan::new(&chosen, experts, top_k)))
    }

    fn load(valid: FloatTensor<Self>, tables: Tables<Self>) -> FloatTensor<Self> {
        let Tables::Host(plan) = tables else {
            unreachable!("a CPU backend makes no other");
        };
        let load = plan.load(&B::values(&valid));
        B::tensor(load, [plan.experts].into())
    }
}

#[cfg(test)]
mod tests {
    use burn::backend::{Dispatch, DispatchTensor};
    use burn::tensor::{Device, Int, Tensor, TensorData};
    use proptest::prelude::*;

    use super::*;
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::values;

    /// Scores of some tokens.
    #[derive(Debug, Clone)]
    struct Case {
        experts: usize,
        top_k: usize,
        scores: Vec<f32>,
        bias: Vec<f32>,
    }

    impl Case {
        fn tokens(&self) -> usize {
            self.scores.len() / self.experts
        }

        fn plan(&self, device: &Device) -> DispatchPlan {
            let scores = TensorData::new(self.scores.clone(), [self.tokens(), self.experts]);
            let scores = Tensor::from_data(scores, device);
            DispatchPlan::choose(&scores, &self.bias, self.top_k)
        }
    }

    /// The tables as they stand, from wherever they are.
    fn read(tables: &Tables<Dispatch>) -> HostPlan {
        let (chosen, assignment_of_row, row_of_assignment, offsets) = match tables {
            Tables::Host(plan) => return plan.as_ref().clone(),
            Tables::Device {
                chosen,
                assignment_of_row,
                row_of_assignment,
                offsets,
            } => (chosen, assignment_of_row, row_of_assignment, offsets),
        };
        let top_k = chosen.shape()[1];
        let table = |table: &DispatchTensor| -> Vec<u32> {
            let dimensions = table.shape().rank();
            let table = table.clone();
            let data = match dimensions {
                1 => Tensor::<1, Int>::from_dispatch(table).into_data(),
                _ => Tensor::<2, Int>::from_dispatch(table).into_data(),
            };
            data.iter::<i32>().map(|value| value as u32).collect()
        };
        let token_of_row = table(assignment_of_row).into_iter();
        let offsets = table(offsets).into_iter();
        HostPlan {
            experts: offsets.len() - 1,
            top_k,
            expert_of_assignment: table(chosen),
            token_of_row: token_of_row.map(|a| a / top_k as u32).collect(),
            row_of_assignment: table(row_of_assignment),
            offsets: offsets.map(|offset| offset as usize).collect(),
        }
    }

    /// Small integers, so that ties are common.
    fn cases() -> impl Strategy<Value = Case> {
        (1usize..12, 0usize..40).prop_flat_map(|(experts, tokens)| {
            let scores = prop::collection::vec((0u8..4).prop_map(f32::from), tokens * experts);
            let bias = prop::collection::vec((-1i8..2).prop_map(f32::from), experts);
            let bias = prop_oneof![Just(vec![]), bias];
            (1..=experts, scores, bias).prop_map(move |(top_k, scores, bias)| Case {
                experts,
                top_k,
                scores,
                bias,
            })
        })
    }

    on_every_device!(
        four_tokens,
        plans_as_the_host_does,
        several_blocks_one_expert_with_everything_and_experts_without,
    );

    fn four_tokens(device: Device) {
        let scores = [
            [0.1, 0.2, 0.7],
            [0.6, 0.3, 0.1],
            [0.2, 0.3, 0.5],
            [0.2, 0.4, 0.4], // a tie
        ];
        let plan = DispatchPlan::choose(&Tensor::from_floats(scores, &device), &[], 1);
        let expected = HostPlan {
            experts: 3,
            top_k: 1,
            expert_of_assignment: vec![2, 0, 2, 1],
            token_of_row: vec![1, 3, 0, 2],
            row_of_assignment: vec![2, 0, 3, 1],
            offsets: vec![0, 1, 2, 4],
        };
        assert_eq!(read(plan.tables()), expected);
        assert_eq!(values(plan.load(None)), [1.0, 1.0, 2.0]);
        let valid = Tensor::from_floats([1.0, 1.0, 0.0, 1.0], &device);
        assert_eq!(values(plan.load(Some(&valid))), [1.0, 1.0, 1.0]);
    }

    fn check(case: &Case, device: &Device) -> Result<(), TestCaseError> {
        let chosen = host::choose(&case.scores, &case.bias, case.experts, case.top_k);
        let expected = HostPlan::new(&chosen, case.experts, case.top_k);
        let valid: Vec<f32> = (0..case.tokens()).map(|t| (t % 3 != 1).into()).collect();
        let plan = case.plan(device);
        prop_assert_eq!(&read(plan.tables()), &expected);
        let uploaded = DispatchPlan::new(&chosen, case.experts, case.top_k, device);
        prop_assert_eq!(&read(uploaded.tables()), &expected);
        prop_assert_eq!(
            values(plan.load(None)),
            expected.load(&vec![1.0; case.tokens()])
        );
        let flags = Tensor::<1>::from_floats(valid.as_slice(), device);
        prop_assert_eq!(values(plan.load(Some(&flags))), expected.load(&valid));
        Ok(())
    }

    fn plans_as_the_host_does(device: Device) {
        proptest!(ProptestConfig::with_cases(24), |(case in cases())| {
            check(&case, &device)?;
        });
    }

    fn several_blocks_one_expert_with_everything_and_experts_without(device: Device) {
        let all_to_one = |experts: usize, tokens: usize| {
            let row = |_| (0..experts).map(move |e| f32::from(u8::from(e == experts / 2)));
            (0..tokens).flat_map(row).collect()
        };
        let mixed = (0..700 * 5).map(|i| ((i * i) as f32 * 0.7).sin()).collect();
        for (experts, top_k, scores) in [
            (5, 1, all_to_one(5, 600)),
            (5, 2, mixed),
            (1, 1, vec![0.5; 300]),
            (3, 3, vec![-0.0, 0.0, f32::INFINITY]),
        ] {
            let case = Case {
                experts,
                top_k,
                scores,
                bias: Vec::new(),
            };
            check(&case, &device).unwrap();
        }
    }
}
