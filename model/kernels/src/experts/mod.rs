//! Everything between router and residual stream as one operation: gather, the experts' feed-forwards, weighted sum.
//!
//! On `flex` each expert's rows are taken in blocks whose activations stay in a core's cache from one
//! product to the next ([`forward`]). On the CubeCL backends each product is one launch over all experts, whatever
//! their load ([`cube`]). The backward pass is written by hand on both.

mod activation;
mod backward;
#[cfg(feature = "cube")]
mod cube;
mod forward;
mod host;
mod rows;
mod spec;
pub mod steps;
#[cfg(test)]
mod tests;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Autodiff, Backend, Dispatch, backend_extension};
use burn::tensor::{DType, Tensor};

use super::dispatch::Tables;
use crate::dispatch::DispatchPlan;
use crate::operation::{Operation, differentiable};
use crate::precision::Precision;
use crate::weight::{Int8, Weight};
use firebox_runtime::device::{Kernels, kernels};
use spec::ExpertsSpec;
pub use spec::{Activation, ExpertBiases, ExpertWeights};
use steps::{combine, dispatch, expert_reference, grouped};

/// Each token's weighted sum of its experts' outputs: `y[t] = Σ_j w[t, j] · E_e(x[t])`, with e the j-th expert of token t and
/// `E_e(x) = a(x W_gate[e] + b_gate[e], x W_up[e] + b_up[e]) W_down[e] + b_down[e]`, with [`Activation`] a. `precision` is
/// that of the matrix products' factors, those of the gradients too; biases and the weighted sum are f32.
///
/// A plan of some of the experts ([`DispatchPlan::part`]) gives these experts' part of the sum, with the weights of these
/// experts alone.
///
/// # Shapes
///
/// - `x`, output: `[tokens, d_model]`
/// - `weights`: `[tokens, top_k]`
///
/// # Panics
///
/// When the shapes do not fit each other or the plan, or the device [does not compute](Precision::runs_on) at the precision.
pub fn experts(
    x: Tensor<2>,
    weights: Tensor<2>,
    experts: ExpertWeights,
    plan: &DispatchPlan,
    activation: Activation,
    precision: Precision,
) -> Tensor<2> {
    check(&x, &weights, &experts, plan);
    let device = x.device();
    precision.check(&device);
    let kernels = kernels(&device);
    // The kernels on a device have all experts.
    if kernels == Kernels::None || kernels == Kernels::Cube && !plan.is_whole() {
        return experts_reference(x, weights, experts, plan, activation, precision);
    }
    let ExpertWeights {
        gate,
        up,
        down,
        biases,
    } = experts;
    let spec = ExpertsSpec {
        activation,
        biased: biases.is_some(),
        precision,
    };
    let biases = match biases {
        Some(biases) => [biases.gate, biases.up, biases.down],
        // Tensors that nobody reads.
        None => [
            weights.clone().detach(),
            weights.clone().detach(),
            weights.clone().detach(),
        ],
    };
    let [gate_bias, up_bias, down_bias] = biases.map(Tensor::into_dispatch);
    let (x, weights, tables) = (
        x.into_dispatch(),
        weights.into_dispatch(),
        plan.tables().clone(),
    );
    Tensor::from_dispatch(match [gate, up, down] {
        [Weight::Int8(gate), Weight::Int8(up), Weight::Int8(down)]
            if Int8::<3>::has_kernel(&device) =>
        {
            <Dispatch as Int8ExpertsBackend>::experts_int8(
                x,
                weights,
                gate.codes.into_dispatch(),
                gate.scales.into_dispatch(),
                up.codes.into_dispatch(),
                up.scales.into_dispatch(),
                down.codes.into_dispatch(),
                down.scales.into_dispatch(),
                gate_bias,
                up_bias,
                down_bias,
                tables,
                spec,
            )
        }
        stacks => {
            let mut stacks = stacks.map(Weight::dequantized);
            // Weights of other types than f32 have a kernel over slices alone, and no gradient.
            if stacks[0].dtype() != DType::F32 && (kernels == Kernels::Cube || device.is_autodiff())
            {
                stacks = stacks.map(|stack| stack.cast(DType::F32));
            }
            let [gate, up, down] = stacks.map(Tensor::into_dispatch);
            <Dispatch as ExpertsBackend>::experts(
                x, weights, gate, up, down, gate_bias, up_bias, down_bias, tables, spec,
            )
        }
    })
}

/// [`experts`] in plain tensor operations: the [`steps`] one by one. Reads the plan back from the device. Of
/// the gradients in bf16, factors that are gradients are not rounded.
///
/// # Panics
///
/// When the shapes do not fit each other or the plan.
pub fn experts_reference(
    x: Tensor<2>,
    weights: Tensor<2>,
    experts: ExpertWeights,
    plan: &DispatchPlan,
    activation: Activation,
    precision: Precision,
) -> Tensor<2> {
    check(&x, &weights, &experts, plan);
    let plan = plan.to_host();
    let rows = dispatch(x, &plan);
    let rows = grouped(rows, experts, &plan, activation, precision);
    combine(rows, weights, &plan)
}

/// `(silu(x W_gate) ⊙ x W_up) W_down` (arXiv 2002.05202): [`experts`] with one that every token visits.
///
/// # Shapes
///
/// - `x`, output: `[tokens, d_model]`
/// - `gate`, `up`: `[d_model, d_ff]`
/// - `down`: `[d_ff, d_model]`
///
/// # Panics
///
/// When the shapes do not fit each other, or the device [does not compute](Precision::runs_on) at the precision.
pub fn swiglu(
    x: Tensor<2>,
    gate: impl Into<Weight<2>>,
    up: impl Into<Weight<2>>,
    down: impl Into<Weight<2>>,
    precision: Precision,
) -> Tensor<2> {
    let (gate, up, down) = (gate.into(), up.into(), down.into());
    precision.check(&x.device());
    let (device, [tokens, _]) = (x.device(), x.dims());
    if kernels(&device) != Kernels::Slices {
        let [gate, up, down] = [gate, up, down].map(Weight::dequantized);
        return swiglu_reference(x, gate, up, down, precision);
    }
    let weights = ExpertWeights {
        gate: gate.stacked(),
        up: up.stacked(),
        down: down.stacked(),
        biases: None,
    };
    experts(
        x,
        Tensor::ones([tokens, 1], &device),
        weights,
        &DispatchPlan::new(&vec![0; tokens], 1, 1, &device),
        Activation::Swiglu,
        precision,
    )
}

/// [`swiglu`] in plain tensor operations.
pub fn swiglu_reference(
    x: Tensor<2>,
    gate: Tensor<2>,
    up: Tensor<2>,
    down: Tensor<2>,
    precision: Precision,
) -> Tensor<2> {
    expert_reference(x, [gate, up, down], None, Activation::Swiglu, precision)
}

fn check(x: &Tensor<2>, weights: &Tensor<2>, of: &ExpertWeights, plan: &DispatchPlan) {
    let [tokens, d_model] = x.dims();
    let stacks = [&of.gate, &of.up, &of.down];
    let [gate, up, down] = stacks.map(|stack| stack.dims());
    let d_ff = gate[2];
    assert_eq!(plan.tokens(), tokens, "tokens of the plan");
    let (experts, top_k) = (plan.experts(), plan.top_k());
    assert_eq!(
        weights.dims(),
        [tokens, top_k],
        "router weights of {tokens} tokens"
    );
    assert_eq!(gate, [experts, d_model, d_ff], "gate");
    assert_eq!(up, [experts, d_model, d_ff], "up");
    assert_eq!(down, [experts, d_ff, d_model], "down");
    let types = stacks.map(|stack| stack.dtype());
    assert!(
        types.iter().all(|&held| held == types[0]),
        "weights of one type, not {types:?}"
    );
    if let Some(biases) = &of.biases {
        assert_eq!(biases.gate.dims(), [experts, d_ff], "biases of gate");
        assert_eq!(biases.up.dims(), [experts, d_ff], "biases of up");
        assert_eq!(biases.down.dims(), [experts, d_model], "biases of down");
    }
}

/// The operation, of `[x, weights, gate, up, down]` and the biases of the last three.
#[derive(Debug, Clone)]
pub struct Experts<B: Backend> {
    tables: Tables<B>,
    spec: ExpertsSpec,
}

/// The backends' side of [`experts`].
#[backend_extension(
    Flex: cfg(feature = "flex"),
    Cube: cfg(feature = "cube"),
    Autodiff
)]
pub trait ExpertsBackend: Backend {
    /// See [`experts`](super::experts); of experts without biases, nobody reads these.
    #[allow(clippy::too_many_arguments)] // each tensor crosses the border between backends by itself
    fn experts(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        down: FloatTensor<Self>,
        gate_bias: FloatTensor<Self>,
        up_bias: FloatTensor<Self>,
        down_bias: FloatTensor<Self>,
        #[extension_type] tables: Tables<Self>,
        spec: ExpertsSpec,
    ) -> FloatTensor<Self>;
}

impl<B: Backend> ExpertsBackend for B
where
    Experts<B>: Operation<B, 8>,
{
    fn experts(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        down: FloatTensor<Self>,
        gate_bias: FloatTensor<Self>,
        up_bias: FloatTensor<Self>,
        down_bias: FloatTensor<Self>,
        tables: Tables<Self>,
        spec: ExpertsSpec,
    ) -> FloatTensor<Self> {
        let inputs = [x, weights, gate, up, down, gate_bias, up_bias, down_bias];
        Experts::<B> { tables, spec }.forward(inputs)
    }
}

impl<B: Backend, C: CheckpointStrategy> ExpertsBackend for Autodiff<B, C>
where
    Experts<B>: Operation<B, 8>,
{
    fn experts(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        gate: FloatTensor<Self>,
        up: FloatTensor<Self>,
        down: FloatTensor<Self>,
        gate_bias: FloatTensor<Self>,
        up_bias: FloatTensor<Self>,
        down_bias: FloatTensor<Self>,
        tables: Tables<Self>,
        spec: ExpertsSpec,
    ) -> FloatTensor<Self> {
        let tables = tables.without_autodiff();
        let operation = Experts::<B> { tables, spec };
        let inputs = [x, weights, gate, up, down, gate_bias, up_bias, down_bias];
        differentiable::<_, B, C, 8>(operation, inputs)
    }
}

/// The side of [`experts`] of the backend with kernels over slices, with weights in 8 bits, which have no gradient.
#[backend_extension(Flex: cfg(feature = "flex"))]
pub trait Int8ExpertsBackend: Backend {
    /// See [`experts`](super::experts); of experts without biases, nobody reads these.
    #[allow(clippy::too_many_arguments)] // each tensor crosses the border between backends by itself
    fn experts_int8(
        x: FloatTensor<Self>,
        weights: FloatTensor<Self>,
        gate: IntTensor<Self>,
        gate_scales: FloatTensor<Self>,
        up: IntTensor<Self>,
        up_scales: FloatTensor<Self>,
        down: IntTensor<Self>,
        down_scales: FloatTensor<Self>,
        gate_bias: FloatTensor<Self>,
        up_bias: FloatTensor<Self>,
        down_bias: FloatTensor<Self>,
        #[extension_type] tables: Tables<Self>,
        spec: ExpertsSpec,
    ) -> FloatTensor<Self>;
}
