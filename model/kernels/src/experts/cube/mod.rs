//! The CubeCL backends' side: launches whose number and size depend on shapes alone, never on the load.
//!
//! [`product`] multiplies rows by their experts' matrices, [`rows`] does what stands between the products. Every sum
//! is taken in one order, without atomics, so that two runs give the same bits.

mod product;
mod rows;
mod tile;

use burn::backend::{Cube, TensorMetadata};
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::Experts;
use crate::cube::{contiguous, owned, zeros};
use crate::dispatch::Tables;
use crate::operation::Operation;

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
    top_k: usize,
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
        let [tokens, top_k] = chosen.shape().dims();
        Self {
            assignment_of_row: assignment_of_row.clone(),
            row_of_assignment: row_of_assignment.clone(),
            offsets: offsets.clone(),
            tokens,
            top_k,
            experts: offsets.shape()[0] - 1,
        }
    }

    fn rows(&self) -> usize {
        self.tokens * self.top_k
    }
}

impl Work {
    fn new(operation: &Experts<Cube>, inputs: [CubeTensor; 5]) -> Self {
        let [x, weights, gate, up, down] = inputs.map(contiguous);
        Self {
            x,
            weights,
            gate,
            up,
            down,
            plan: Plan::new(&operation.tables),
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
        let outputs =
            product::rows_by_stack(&self.plan, product::Operand::Rows(&hidden), &self.down);
        let output = rows::combine(&self.plan, &outputs, Some(&self.weights));
        Some((output, Saved { gate, up }))
    }
}

impl Operation<Cube, 5> for Experts<Cube> {
    /// The products are `None` without rows.
    type Saved = (Self, [CubeTensor; 5], Option<Saved>);

    fn forward_saving(self, inputs: [CubeTensor; 5]) -> (CubeTensor, Self::Saved) {
        let (output, saved) = match Work::new(&self, inputs.clone()).forward() {
            Some((output, saved)) => (output, Some(saved)),
            None => (inputs[0].clone(), None),
        };
        (output, (self, inputs, saved))
    }

    /// The formulas are those of [`backward`](super::backward::backward) over slices.
    fn backward(
        (operation, inputs, saved): Self::Saved,
        gradient: CubeTensor,
        [x, weights, gate, up, down]: [bool; 5],
    ) -> [Option<CubeTensor>; 5] {
        use product::Operand::{Rows, Tokens};

        let Some(saved) = saved else {
            return inputs.map(|tensor| Some(zeros(&tensor, tensor.shape(), DType::F32)));
        };
        let work = Work::new(&operation, inputs);
        let plan = &work.plan;
        let gradient = contiguous(gradient);
        let (of_gate, of_up) = (owned(saved.gate), owned(saved.up));
        let hidden = product::rows_by_transposed(plan, Tokens(&gradient), &work.down, None);
        let of_weights = rows::activate_backward(plan, &of_gate, &of_up, &hidden, &work.weights);
        let of_stack = |left, right| product::stack_gradient(plan, left, right);
        let down = down.then(|| of_stack(Rows(&hidden), Tokens(&gradient)));
        let gate = gate.then(|| of_stack(Tokens(&work.x), Rows(&of_gate)));
        let up = up.then(|| of_stack(Tokens(&work.x), Rows(&of_up)));
        let x = x.then(|| {
            let by_row = product::rows_by_transposed(plan, Rows(&of_gate), &work.gate, None);
            let by_row = product::rows_by_transposed(plan, Rows(&of_up), &work.up, Some(by_row));
            rows::combine(plan, &by_row, None)
        });
        [x, weights.then_some(of_weights), gate, up, down]
    }
}
