//! Attention without a causal mask: every query sees every key, but for what is added to their scores. Keys may be those of
//! something else.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use burn::backend::autodiff::checkpoint::strategy::CheckpointStrategy;
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend, Dispatch, TensorMetadata, backend_extension};
use burn::tensor::activation::softmax;
use burn::tensor::{DType, Tensor};
use firebox_runtime::device::{Kernels, kernels};

use super::reference::split_heads;
use super::rows::{AttentionShape, RopeTables};
use super::stretches::Stretches;
use super::{AttentionSpec, backward, forward};
use crate::host::Host;
use crate::operation::{Operation, differentiable};
use crate::precision::Precision;

/// What is added to the score of a pair that does not see each other. So far below every score that the weight is 0 beside
/// anything that is seen, and finite, so that a query which sees nothing has a mean, not NaN.
pub const HIDDEN: f32 = -1e30;

/// What [`biased_attention`] takes.
#[derive(Debug, Clone)]
pub struct BiasedInput<'a> {
    /// `[batch · queries, heads · head_dim]`
    pub query: Tensor<2>,
    /// `[batch · keys, kv_heads · head_dim]`
    pub key: Tensor<2>,
    /// `[batch · keys, kv_heads · head_dim]`
    pub value: Tensor<2>,
    /// What is added to the scores of every head, `[batch, queries, keys]`; it takes no gradient. [`HIDDEN`] hides a key
    /// from a query.
    pub bias: &'a Tensor<3>,
    /// What is computed; without a window.
    pub spec: AttentionSpec,
}

/// `softmax(scale · q kᵀ + bias) v` of each of a batch's queries over all of its keys, where `heads / kv_heads` query heads in
/// a row share a key/value head. In f32.
///
/// The same values as [`biased_attention_reference`], which runs for other types than f32 and everywhere but on `flex`. There
/// it goes block by block as [`attention`](super::attention) does. A query from which every key is hidden gets the mean of
/// the values. A bias of −∞ in place of [`HIDDEN`] would make that NaN.
///
/// # Shapes
///
/// - output: `[batch · queries, heads · head_dim]`
///
/// # Panics
///
/// When the shapes do not fit, there is no key, or the specification has a window.
pub fn biased_attention(input: BiasedInput<'_>) -> Tensor<2> {
    let shape = input.shape();
    if input.query.dims()[0] == 0 {
        return input.query; // as empty as the output
    }
    let all_f32 = [input.query.dtype(), input.key.dtype(), input.value.dtype()] == [DType::F32; 3];
    let has_kernel = kernels(&input.query.device()) == Kernels::Slices;
    if !has_kernel || !all_f32 || input.bias.dtype() != DType::F32 {
        return biased_attention_reference(input);
    }
    let output = <Dispatch as BiasedAttentionBackend>::biased_attention(
        input.query.into_dispatch(),
        input.key.into_dispatch(),
        input.value.into_dispatch(),
        input.bias.clone().into_dispatch(),
        shape,
    );
    Tensor::from_dispatch(output)
}

/// [`biased_attention`] in plain tensor operations, with whole matrices of scores.
///
/// # Panics
///
/// As there.
pub fn biased_attention_reference(input: BiasedInput<'_>) -> Tensor<2> {
    let AttentionShape {
        batch,
        length,
        keys,
        heads,
        kv_heads,
        head_dim,
        ..
    } = input.shape();
    let weights = biased_weights(input.query, input.key, input.bias, &input.spec);
    let weights = weights.reshape([batch, kv_heads, heads / kv_heads * length, keys]);
    let attended = weights.matmul(split_heads(input.value, batch, head_dim));
    attended
        .reshape([batch, heads, length, head_dim])
        .swap_dims(1, 2)
        .reshape([batch * length, heads * head_dim])
}

/// The weights of that mean, `softmax(scale · q kᵀ + bias)`.
///
/// # Shapes
///
/// - `query`: `[batch · queries, heads · head_dim]`
/// - `key`: `[batch · keys, kv_heads · head_dim]`
/// - `bias`: `[batch, queries, keys]`
/// - output: `[batch, heads, queries, keys]`
///
/// # Panics
///
/// When the shapes do not fit.
pub fn biased_weights(
    query: Tensor<2>,
    key: Tensor<2>,
    bias: &Tensor<3>,
    spec: &AttentionSpec,
) -> Tensor<4> {
    let [batch, queries, keys] = bias.dims();
    let AttentionSpec {
        heads,
        kv_heads,
        head_dim,
        scale,
        ..
    } = *spec;
    // The queries of all heads that share a key/value head, one head after the other.
    let grouped = [batch, kv_heads, heads / kv_heads * queries, head_dim];
    let query = split_heads(query, batch, head_dim).reshape(grouped);
    let key = split_heads(key, batch, head_dim);
    let scores = query.matmul(key.swap_dims(2, 3)).mul_scalar(scale);
    let scores = scores.reshape([batch, heads, queries, keys]);
    softmax(scores + bias.clone().unsqueeze_dim(1), 3)
}

impl BiasedInput<'_> {
    /// # Panics
    ///
    /// When the shapes do not fit.
    fn shape(&self) -> AttentionShape {
        let [batch, length, keys] = self.bias.dims();
        let AttentionSpec {
            heads,
            kv_heads,
            head_dim,
            window,
            scale,
        } = self.spec;
        let kv_shape = [batch * keys, kv_heads * head_dim];
        assert!(
            kv_heads > 0
                && heads.is_multiple_of(kv_heads)
                && keys > 0
                && head_dim > 0
                && window.is_none()
                && self.query.dims() == [batch * length, heads * head_dim]
                && self.key.dims() == kv_shape
                && self.value.dims() == kv_shape,
            "queries {:?}, keys {:?} and values {:?} against a bias {:?} and {:?}",
            self.query.dims(),
            self.key.dims(),
            self.value.dims(),
            self.bias.dims(),
            self.spec,
        );
        AttentionShape {
            batch,
            length,
            keys,
            heads,
            kv_heads,
            head_dim,
            rotary_dim: 0,
            window: None,
            scale,
            sinks: false,
        }
    }
}

/// The operation, of `[query, key, value]`.
#[derive(Debug, Clone)]
pub struct BiasedAttention<B: Backend> {
    /// `[batch, queries, keys]`
    bias: FloatTensor<B>,
    shape: AttentionShape,
}

/// The backends' side of [`biased_attention`].
#[backend_extension(Flex: cfg(feature = "flex"), Autodiff)]
pub trait BiasedAttentionBackend: Backend {
    /// See [`biased_attention`].
    fn biased_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> FloatTensor<Self>;
}

impl<B: Backend> BiasedAttentionBackend for B
where
    BiasedAttention<B>: Operation<B, 3>,
{
    fn biased_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> FloatTensor<Self> {
        BiasedAttention::<B> { bias, shape }.forward([query, key, value])
    }
}

impl<B: Backend, C: CheckpointStrategy> BiasedAttentionBackend for Autodiff<B, C>
where
    BiasedAttention<B>: Operation<B, 3>,
{
    fn biased_attention(
        query: FloatTensor<Self>,
        key: FloatTensor<Self>,
        value: FloatTensor<Self>,
        bias: FloatTensor<Self>,
        shape: AttentionShape,
    ) -> FloatTensor<Self> {
        let bias = bias.into_primitive();
        differentiable::<_, B, C, 3>(BiasedAttention::<B> { bias, shape }, [query, key, value])
    }
}

/// What the forward pass took and made.
#[derive(Debug, Clone)]
pub struct Saved<B: Host> {
    operation: BiasedAttention<B>,
    /// Query, key, value.
    inputs: [FloatTensor<B>; 3],
    output: FloatTensor<B>,
    /// Of the scores of each row, `[batch, queries, heads]`.
    log_sum_exp: Arc<Vec<f32>>,
}

/// Nothing is rotated.
const NO_TABLES: RopeTables<'static> = RopeTables {
    cosines: &[],
    sines: &[],
    half: 0,
};

impl<B: Host> Operation<B, 3> for BiasedAttention<B> {
    type Saved = Saved<B>;

    fn forward_saving(self, inputs: [FloatTensor<B>; 3]) -> (FloatTensor<B>, Saved<B>) {
        let [query, key, value] = inputs.each_ref().map(|tensor| B::values(tensor));
        let (output, log_sum_exp) = forward::forward(
            [&query, &key, &value],
            None,
            NO_TABLES,
            Stretches::all(&B::values(&self.bias), self.shape),
            self.shape,
            Precision::F32,
        );
        let output = B::tensor(output, inputs[0].shape());
        drop((query, key, value));
        let saved = Saved {
            operation: self,
            inputs,
            output: output.clone(),
            log_sum_exp: Arc::new(log_sum_exp),
        };
        (output, saved)
    }

    fn backward(
        saved: Saved<B>,
        gradient: FloatTensor<B>,
        [query_needs_grad, key_needs_grad, value_needs_grad]: [bool; 3],
    ) -> [Option<FloatTensor<B>>; 3] {
        let BiasedAttention { bias, shape } = &saved.operation;
        let (bias, output) = (B::values(bias), B::values(&saved.output));
        let [query, key, value] = saved.inputs.each_ref().map(|tensor| B::values(tensor));
        let slices = backward::Saved {
            query: &query,
            key: &key,
            value: &value,
            sinks: None,
            output: &output,
            log_sum_exp: &saved.log_sum_exp,
            tables: NO_TABLES,
            stretches: Stretches::all(&bias, *shape),
            shape: *shape,
            precision: Precision::F32,
        };
        let needs_grad = [query_needs_grad, key_needs_grad, value_needs_grad, false];
        let [query, key, value, _] = backward::backward(&slices, &B::values(&gradient), needs_grad);
        let shapes = saved.inputs.each_ref().map(|tensor| tensor.shape());
        let mut shapes = shapes.into_iter();
        [query, key, value].map(|values| {
            let shape = shapes.next().expect("that of each input");
            values.map(|values| B::tensor(values, shape))
        })
    }
}
