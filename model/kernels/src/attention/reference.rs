//! Attention in plain tensor operations, with whole matrices of scores.

use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Device, Tensor};

use super::AttentionInput;
use crate::rope::Rotary;

/// [`attention`](super::attention) in plain tensor operations.
///
/// # Panics
///
/// When the shapes do not fit.
pub fn attention_reference(input: AttentionInput<'_>) -> Tensor<2> {
    let shape = input.shape();
    let ranges = input.ranges.map(|ranges| ranges.hidden(input.batch));
    let window = shape.window.filter(|&window| window < shape.length);
    let window = window.map(|window| {
        let square = [shape.length; 2];
        outside(window, square, &input.query.device())
    });
    let hidden = match (ranges, window) {
        (Some(ranges), Some(window)) => {
            let window = window.expand(ranges.dims());
            Some(ranges.bool_or(window))
        }
        (ranges, window) => ranges.or(window),
    };
    let [query, key, value] = [input.query, input.key, input.value]
        .map(|heads| split_heads(heads, input.batch, shape.head_dim));
    masked_attention(
        rotated(query, input.rotary),
        rotated(key, input.rotary),
        value,
        shape.scale,
        input.sinks,
        hidden.as_ref(),
    )
}

/// Queries or keys, rotated where there are positions to rotate them by.
pub(super) fn rotated(x: Tensor<4>, rotary: Option<&Rotary>) -> Tensor<4> {
    match rotary {
        Some(rotary) => rotary.apply(x),
        None => x,
    }
}

/// `[1, 1, new, all]`, true where the query of a row, of which the last is that of the last key, does not see the key of a
/// column within a window.
pub(super) fn outside(window: usize, [new, all]: [usize; 2], device: &Device) -> Tensor<4, Bool> {
    let past = (all - new) as i64;
    let later = Tensor::<2, Bool>::tril_mask([new, all], past, device);
    let before = past + 1 - window as i64;
    later
        .bool_or(Tensor::triu_mask([new, all], before, device))
        .unsqueeze()
}

/// `[batch · new, heads · head_dim]` → `[batch, heads, new, head_dim]`
pub(super) fn split_heads(x: Tensor<2>, batch: usize, head_dim: usize) -> Tensor<4> {
    let [tokens, width] = x.dims();
    let heads = width / head_dim;
    x.reshape([batch, tokens / batch.max(1), heads, head_dim])
        .swap_dims(1, 2)
}

/// `softmax(scale · q kᵀ) v`, of queries and keys that are rotated already.
///
/// # Shapes
///
/// - `query`: `[batch, heads, new, head_dim]`
/// - `key`, `value`: `[batch, kv_heads, all, head_dim]`, the new positions last
/// - `sinks`: `[heads]`
/// - `hidden`: `[batch or 1, 1, new, all]`, true where a new position must not see; `None` hides what comes later
/// - output: `[batch · new, heads · head_dim]`
pub(super) fn masked_attention(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    scale: f32,
    sinks: Option<Tensor<1>>,
    hidden: Option<&Tensor<4, Bool>>,
) -> Tensor<2> {
    let [batch, heads, new, head_dim] = query.dims();
    let [_, kv_heads, all, _] = key.dims();
    let group = heads / kv_heads;
    // The query heads that share a key/value head stand under each other, so that the product reads each key
    // once and nothing is repeated.
    let query = query
        .mul_scalar(scale)
        .reshape([batch, kv_heads, group * new, head_dim]);
    let mut scores = query
        .matmul(key.swap_dims(2, 3))
        .reshape([batch, heads, new, all]);
    let later = || {
        let past = (all - new) as i64;
        Tensor::<2, Bool>::tril_mask([new, all], past, &scores.device()).unsqueeze()
    };
    let hidden = match hidden {
        Some(hidden) => Some(hidden.clone()),
        None => (new > 1).then(later),
    };
    if let Some(hidden) = hidden {
        let hidden = hidden.expand([batch, heads, new, all]);
        scores = scores.mask_fill(hidden, f32::NEG_INFINITY);
    }
    let weights = match sinks {
        Some(sinks) => {
            let sinks = sinks.cast(scores.dtype()).reshape([1, heads, 1, 1]);
            let sinks = sinks.expand([batch, heads, new, 1]);
            softmax(Tensor::cat(vec![scores, sinks], 3), 3).narrow(3, 0, all)
        }
        None => softmax(scores, 3),
    };
    let attended = weights
        .reshape([batch, kv_heads, group * new, all])
        .matmul(value);
    attended
        .reshape([batch, heads, new, head_dim])
        .swap_dims(1, 2)
        .reshape([batch * new, heads * head_dim])
}
