//! Attention of some positions to others, in plain tensor operations.

use burn::tensor::Tensor;
use burn::tensor::activation::softmax;

/// What is added to the score of a pair that does not see each other. So far below every score that the weight is 0 beside
/// anything that is seen, and finite, so that a position which sees nothing has a mean, not NaN.
pub(super) const HIDDEN: f64 = -1e30;

/// `softmax(q kᵀ / √head_dim + bias) v`, where `heads / kv_heads` query heads in a row share a key/value head.
///
/// # Shapes
///
/// - `query`, output: `[batch, heads, queries, head_dim]`
/// - `key`, `value`: `[batch, kv_heads, keys, head_dim]`
/// - `bias`: `[batch, 1, queries, keys]`
pub(super) fn attend(
    query: Tensor<4>,
    key: Tensor<4>,
    value: Tensor<4>,
    bias: &Tensor<4>,
) -> Tensor<4> {
    let [batch, heads, queries, head_dim] = query.dims();
    let [_, kv_heads, keys, _] = key.dims();
    let weights = weights(query, key, bias);
    let weights = weights.reshape([batch, kv_heads, heads / kv_heads * queries, keys]);
    let attended = weights.matmul(value);
    attended.reshape([batch, heads, queries, head_dim])
}

/// The weights of that mean, `softmax(q kᵀ / √head_dim + bias)`.
///
/// # Shapes
///
/// - output: `[batch, heads, queries, keys]`
pub(super) fn weights(query: Tensor<4>, key: Tensor<4>, bias: &Tensor<4>) -> Tensor<4> {
    let [batch, heads, queries, head_dim] = query.dims();
    let [_, kv_heads, keys, _] = key.dims();
    // The queries of all heads that share a key/value head, one head after the other.
    let grouped = [batch, kv_heads, heads / kv_heads * queries, head_dim];
    let scale = (head_dim as f64).sqrt().recip();
    let scores = query.reshape(grouped).matmul(key.swap_dims(2, 3));
    let scores = scores
        .reshape([batch, heads, queries, keys])
        .mul_scalar(scale)
        + bias.clone();
    softmax(scores, 3)
}

/// The heads of rows, `[batch · positions, heads · head_dim]` to `[batch, heads, positions, head_dim]`.
pub(super) fn heads_of(rows: Tensor<2>, batch: usize, heads: usize) -> Tensor<4> {
    let [positions, width] = rows.dims();
    let split = rows.reshape([batch, positions / batch, heads, width / heads]);
    split.swap_dims(1, 2)
}

/// The rows of heads: the inverse of [`heads_of`].
pub(super) fn rows_of(heads: Tensor<4>) -> Tensor<2> {
    let [batch, count, positions, head_dim] = heads.dims();
    let joined = heads.swap_dims(1, 2);
    joined.reshape([batch * positions, count * head_dim])
}
