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
        let new = query.dims()[0] / self.keys.dims()[0].max(1);
        let cache = [&mut self.keys, &mut self.values];
        let attended = cached_attention(query, key, value, rotary, cache, self.length);
        self.length += new;
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

#[cfg(test)]
mod tests {
    use burn::tensor::TensorData;

    use super::*;
    use crate::testing::smallest;
    use firebox_runtime::device::{default_name, select};
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::values;

    on_every_device!(positions_are_kept_in_their_order);

    /// One sequence, one head of width 2: positions that hold `n` and `n + 0.5`.
    fn positions(numbers: &[f32], device: &Device) -> Tensor<4> {
        let values: Vec<f32> = numbers.iter().flat_map(|&n| [n, n + 0.5]).collect();
        Tensor::from_data(TensorData::new(values, [1, 1, numbers.len(), 2]), device)
    }

    fn positions_are_kept_in_their_order(device: Device) {
        let mut cache = KeyValueCache::new(&smallest(), 1, 3, &device);
        assert_eq!((cache.length(), cache.remaining()), (0, 3));
        assert!(cache.layers[0].is_empty());
        let mut append = |keys: &[f32], after: &[f32]| {
            let opposite: Vec<f32> = keys.iter().map(|key| -key).collect();
            let (keys, opposite) = (positions(keys, &device), positions(&opposite, &device));
            let (keys, opposite) = cache.layers[0].append(keys, opposite);
            assert_eq!(keys.dims(), [1, 1, after.len(), 2]);
            assert_eq!(values(keys), values(positions(after, &device)));
            let after: Vec<f32> = after.iter().map(|key| -key).collect();
            assert_eq!(values(opposite), values(positions(&after, &device)));
        };
        append(&[1.0, 2.0], &[1.0, 2.0]);
        append(&[3.0], &[1.0, 2.0, 3.0]);
        assert_eq!((cache.length(), cache.remaining()), (3, 0));
        assert!(!cache.layers[0].is_empty());
    }

    #[test]
    #[should_panic(expected = "4 positions exceed the key/value cache's capacity of 3")]
    fn a_full_cache_takes_no_more() {
        let device = select(default_name()).unwrap();
        let mut cache = KeyValueCache::new(&smallest(), 1, 3, &device);
        let four = || positions(&[1.0, 2.0, 3.0, 4.0], &device);
        let _ = cache.layers[0].append(four(), four());
    }
}
