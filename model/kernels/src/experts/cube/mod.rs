//! The CubeCL backends' side: launches whose number and size depend on shapes alone, never on the load.
//!
//! [`product`] multiplies rows by their experts' matrices, [`rows`] does what stands between the products. Every sum
//! is taken in one order, without atomics, so that two runs give the same bits.

mod product;
mod rows;
mod tile;

use burn::backend::tensor::FloatTensor;
use burn::backend::{Cube, TensorMetadata};
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::backward::ByInput;
use super::{ExpertsKernels, Operands};
use crate::cube::{contiguous, owned, zeros};
use crate::dispatch::Tables;

/// The rows' products with the gate and up matrices, each `[rows, d_ff]`.
#[derive(Debug, Clone)]
pub struct Saved {
    gate: CubeTensor,
    up: CubeTensor,
}

/// The tensors in row-major order, and the plan.
struct Work {
    x: CubeTensor,
    weights: CubeTensor,
    gate: CubeTensor,
    up: CubeTensor,
    down: CubeTensor,
    plan: Plan,
}

/// The tables on the device, and their sizes.
struct Plan {
    assignment_of_row: CubeTensor,
    row_of_assignment: CubeTensor,
    offsets: CubeTensor,
    tokens: usize,
    per_token: usize,
    experts: usize,
}

impl Plan {
    fn new(tables: &Tables<Cube>) -> Self {
        let Tables::Device {
            chosen,
            assignment_of_row,
            row_of_assignment,
            offsets,
        } = tables
        else {
            unreachable!("a CubeCL backend makes no other");
        };
        let [tokens, per_token] = chosen.shape().dims();
        Self {
            assignment_of_row: assignment_of_row.clone(),
            row_of_assignment: row_of_assignment.clone(),
            offsets: offsets.clone(),
            tokens,
            per_token,
            experts: offsets.shape()[0] - 1,
        }
    }

    fn rows(&self) -> usize {
        self.tokens * self.per_token
    }
}

impl Work {
    fn new(operands: &Operands<Cube>) -> Self {
        let [x, weights, gate, up, down] = operands.tensors.clone().map(contiguous);
        Self {
            x,
            weights,
            gate,
            up,
            down,
            plan: Plan::new(&operands.tables),
        }
    }

    /// Output and what to save; none of both without rows.
    fn forward(&self) -> Option<(CubeTensor, Saved)> {
        if self.plan.rows() == 0 {
            return None;
        }
        let into = |stack: &CubeTensor| {
            product::rows_by_stack(&self.plan, product::Operand::Tokens(&self.x), stack)
        };
        let (gate, up) = (into(&self.gate), into(&self.up));
        let hidden = rows::activate(&gate, &up);
        let answers =
            product::rows_by_stack(&self.plan, product::Operand::Rows(&hidden), &self.down);
        let output = rows::combine(&self.plan, &answers, Some(&self.weights));
        Some((output, Saved { gate, up }))
    }
}

impl ExpertsKernels for Cube {
    /// `None` without rows.
    type Saved = Option<Saved>;

    fn forward(operands: &Operands<Self>) -> FloatTensor<Self> {
        Self::forward_saving(operands).0
    }

    fn forward_saving(operands: &Operands<Self>) -> (FloatTensor<Self>, Option<Saved>) {
        match Work::new(operands).forward() {
            Some((output, saved)) => (output, Some(saved)),
            None => (operands.tensors[0].clone(), None),
        }
    }

    /// The formulas are those of [`backward`](super::backward::backward) over slices.
    fn backward(
        operands: &Operands<Self>,
        saved: Option<Saved>,
        gradient: FloatTensor<Self>,
        wanted: ByInput<bool>,
    ) -> ByInput<Option<FloatTensor<Self>>> {
        use product::Operand::{Rows, Tokens};

        let Some(saved) = saved else {
            let [x, weights, gate, up, down] = operands
                .tensors
                .each_ref()
                .map(|tensor| Some(zeros(tensor, tensor.shape(), DType::F32)));
            return ByInput {
                x,
                weights,
                gate,
                up,
                down,
            };
        };
        let work = Work::new(operands);
        let plan = &work.plan;
        let gradient = contiguous(gradient);
        let (gate, up) = (owned(saved.gate), owned(saved.up));
        let hidden = product::rows_by_transposed(plan, Tokens(&gradient), &work.down, None);
        let weights = rows::activate_backward(plan, &gate, &up, &hidden, &work.weights);
        ByInput {
            down: wanted
                .down
                .then(|| product::stack_gradient(plan, Rows(&hidden), Tokens(&gradient))),
            gate: wanted
                .gate
                .then(|| product::stack_gradient(plan, Tokens(&work.x), Rows(&gate))),
            up: wanted
                .up
                .then(|| product::stack_gradient(plan, Tokens(&work.x), Rows(&up))),
            weights: wanted.weights.then_some(weights),
            x: wanted.x.then(|| {
                let by_row = product::rows_by_transposed(plan, Rows(&gate), &work.gate, None);
                let by_row = product::rows_by_transposed(plan, Rows(&up), &work.up, Some(by_row));
                rows::combine(plan, &by_row, None)
            }),
        }
    }
}
