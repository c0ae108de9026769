//! The CubeCL backends' side: launches whose number and size depend on shapes alone, never on the load.
//!
//! [`product`] multiplies rows by their experts' matrices, [`rows`] does what stands between the products, [`bias`] what
//! biases need besides. Every sum is taken in one order, without atomics, so that two runs give the same bits.

mod bias;
mod product;
mod rows;
mod tile;

use burn::backend::{Cube, TensorMetadata};
use burn::tensor::DType;
use burn_cubecl::tensor::CubeTensor;

use super::{Activation, Experts};
use crate::cube::{contiguous, owned, zeros};
use crate::dispatch::Tables;
use crate::operation::Operation;

/// The rows' products with the gate and up matrices, with their biases, each `[rows, d_ff]`.
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
    /// Of gate, up and down.
    biases: Option<[CubeTensor; 3]>,
    activation: Activation,
    plan: Plan,
}

/// The tables on the device, and their sizes.
struct Plan {
    chosen: CubeTensor,
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
            chosen: chosen.clone(),
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
    fn new(operation: &Experts<Cube>, inputs: [CubeTensor; 8]) -> Self {
        let [x, weights, gate, up, down, biases @ ..] = inputs.map(contiguous);
        Self {
            x,
            weights,
            gate,
            up,
            down,
            biases: operation.spec.biased.then_some(biases),
            activation: operation.spec.activation,
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
        if let Some([of_gate, of_up, _]) = &self.biases {
            bias::add(&self.plan, &gate, of_gate);
            bias::add(&self.plan, &up, of_up);
        }
        let hidden = rows::activate(self.activation, &gate, &up);
        let outputs =
            product::rows_by_stack(&self.plan, product::Operand::Rows(&hidden), &self.down);
        if let Some([_, _, of_down]) = &self.biases {
            bias::add(&self.plan, &outputs, of_down);
        }
        let output = rows::combine(&self.plan, &outputs, Some(&self.weights));
        Some((output, Saved { gate, up }))
    }
}

impl Operation<Cube, 8> for Experts<Cube> {
    /// The products are `None` without rows.
    type Saved = (Self, [CubeTensor; 8], Option<Saved>);

    fn forward_saving(self, inputs: [CubeTensor; 8]) -> (CubeTensor, Self::Saved) {
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
        [x, weights, gate, up, down, of_biases @ ..]: [bool; 8],
    ) -> [Option<CubeTensor>; 8] {
        use product::Operand::{Rows, Tokens};

        let Some(saved) = saved else {
            return inputs.map(|tensor| Some(zeros(&tensor, tensor.shape(), DType::F32)));
        };
        let work = Work::new(&operation, inputs);
        let plan = &work.plan;
        let gradient = contiguous(gradient);
        let (of_gate, of_up) = (owned(saved.gate), owned(saved.up));
        let hidden = product::rows_by_transposed(plan, Tokens(&gradient), &work.down, None);
        let rows = [&of_gate, &of_up, &hidden];
        let of_weights = rows::activate_backward(plan, work.activation, rows, &work.weights);
        let mut biases = [None, None, None];
        if let Some([_, _, of_down]) = &work.biases {
            bias::add_products(plan, &of_weights, of_down, &gradient);
            let wanted = |place: usize, rows| of_biases[place].then_some(rows);
            biases = [
                wanted(0, bias::Summand::Rows(&of_gate)),
                wanted(1, bias::Summand::Rows(&of_up)),
                wanted(2, bias::Summand::Tokens(&gradient, &work.weights)),
            ]
            .map(|summand| summand.map(|summand| bias::gradient(plan, summand)));
        }
        let [gate_bias, up_bias, down_bias] = biases;
        let of_stack = |left, right| product::stack_gradient(plan, left, right);
        let down = down.then(|| of_stack(Rows(&hidden), Tokens(&gradient)));
        let gate = gate.then(|| of_stack(Tokens(&work.x), Rows(&of_gate)));
        let up = up.then(|| of_stack(Tokens(&work.x), Rows(&of_up)));
        let x = x.then(|| {
            let by_row = product::rows_by_transposed(plan, Rows(&of_gate), &work.gate, None);
            let by_row = product::rows_by_transposed(plan, Rows(&of_up), &work.up, Some(by_row));
            rows::combine(plan, &by_row, None)
        });
        let weights = weights.then_some(of_weights);
        [x, weights, gate, up, down, gate_bias, up_bias, down_bias]
    }
}
