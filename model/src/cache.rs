//! The key/value cache: keys and values of the earlier tokens, for attention.

use burn::tensor::{Device, Tensor};

use crate::config::ModelConfig;
use firebox_kernels::cached_attention;
use firebox_kernels::rope::Rotary;

/// Keys and values of one layer, allocated once at full capacity.
#[derive(Debug, Clone)]
pub struct LayerCache {
    keys: Tensor<4>,   // [batch, kv_heads, capacity, head_dim]
    values: Tensor<4>, // [batch, kv_heads, capacity, head_dim]
    length: usize,
}

impl LayerCache {
    /// Whether the cache is empty.
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// Adds new positions, and attends over all so far.
    ///
    /// # Shapes
    ///
    /// - `query`, output: `[batch · new, heads · head_dim]`
    /// - `key`, `value`: `[batch · new, kv_heads · head_dim]`; queries and keys before the rotary embedding
    ///
    /// # Panics
    ///
    /// When the capacity is exceeded; callers check [`KeyValueCache::remaining`].
    pub(crate) fn attend(
        &mut self,
        query: Tensor<2>,
        key: Tensor<2>,
        value: Tensor<2>,
        rotary: &Rotary,
    ) -> Tensor<2> {
        let cache = [&mut self.keys, &mut self.values];
        let attended = cached_attention(query, key, value, rotary, cache, self.length);
        self.length += rotary.positions();
        attended
    }

    /// Appends the keys and values of new positions, and returns those of all positions so far.
    ///
    /// # Shapes
    ///
    /// - `keys`, `values`: `[batch, kv_heads, new, head_dim]`
    /// - output: twice `[batch, kv_heads, length + new, head_dim]`
    ///
    /// # Panics
    ///
    /// When the capacity is exceeded; callers check [`KeyValueCache::remaining`].
    pub fn append(&mut self, keys: Tensor<4>, values: Tensor<4>) -> (Tensor<4>, Tensor<4>) {
        let [batch, kv_heads, new, head_dim] = keys.dims();
        let [_, _, capacity, _] = self.keys.dims();
        let end = self.length + new;
        assert!(
            end <= capacity,
            "{end} positions exceed the key/value cache's capacity of {capacity}"
        );
        let range = [0..batch, 0..kv_heads, self.length..end, 0..head_dim];
        self.keys
            .inplace(|all| all.slice_assign(range.clone(), keys));
        self.values.inplace(|all| all.slice_assign(range, values));
        self.length = end;
        let so_far = |all: &Tensor<4>| all.clone().narrow(2, 0, end);
        (so_far(&self.keys), so_far(&self.values))
    }
}

/// One [`LayerCache`] per layer.
#[derive(Debug, Clone)]
pub struct KeyValueCache {
    /// By layer.
    pub layers: Vec<LayerCache>,
    capacity: usize,
}

impl KeyValueCache {
    /// An empty cache for `batch` sequences of at most `capacity` tokens.
    pub fn new(config: &ModelConfig, batch: usize, capacity: usize, device: &Device) -> Self {
        let shape = [batch, config.kv_heads, capacity, config.head_dim];
        let layer = || LayerCache {
            keys: Tensor::zeros(shape, device),
            values: Tensor::zeros(shape, device),
            length: 0,
        };
        Self {
            layers: (0..config.layers).map(|_| layer()).collect(),
            capacity,
        }
    }

    /// Number of cached tokens.
    pub fn length(&self) -> usize {
        self.layers.first().map_or(0, |layer| layer.length)
    }

    /// Number of tokens that can still be appended.
    pub fn remaining(&self) -> usize {
        self.capacity - self.length()
    }
}
