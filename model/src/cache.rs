//! The key/value cache: keys and values of the earlier tokens of some sequences, for attention.

use burn::tensor::{Device, Tensor};

use crate::config::ModelConfig;
use firebox_kernels::rope::Rotary;
use firebox_kernels::{AttentionSpec, CachedInput, Segment, Segments, cached_attention};

/// Keys and values of one layer.
#[derive(Debug, Clone)]
struct LayerCache {
    keys: Tensor<4>,   // [kv_heads, sequences, capacity, head_dim]
    values: Tensor<4>, // [kv_heads, sequences, capacity, head_dim]
}

/// A layer's part of a step.
#[derive(Debug)]
pub struct LayerStep<'a> {
    cache: &'a mut LayerCache,
    segments: &'a Segments,
}

impl LayerStep<'_> {
    /// Adds the new positions of a step, and attends over all that each sequence has then.
    ///
    /// # Shapes
    ///
    /// - `[query, key, value]`: `[rows, heads · head_dim]`, and `[rows, kv_heads · head_dim]` twice; queries and keys
    ///   before the rotary embedding
    /// - `rotary`: of each row
    /// - `sinks`: `[heads]`
    /// - output: `[rows, heads · head_dim]`
    pub(crate) fn attend(
        self,
        [query, key, value]: [Tensor<2>; 3],
        rotary: Option<&Rotary>,
        sinks: Option<Tensor<1>>,
        spec: AttentionSpec,
    ) -> Tensor<2> {
        let input = CachedInput {
            query,
            key,
            value,
            rotary,
            sinks,
            segments: self.segments,
            spec,
        };
        cached_attention(input, [&mut self.cache.keys, &mut self.cache.values])
    }
}

impl LayerCache {
    /// Makes room for `capacity` positions of each sequence.
    fn grow(&mut self, capacity: usize) {
        for cached in [&mut self.keys, &mut self.values] {
            let [kv_heads, sequences, so_far, head_dim] = cached.dims();
            let room = Tensor::zeros([kv_heads, sequences, capacity, head_dim], &cached.device());
            let place = [0..kv_heads, 0..sequences, 0..so_far, 0..head_dim];
            cached.inplace(|cached| room.slice_assign(place, cached));
        }
    }
}

/// The keys and values of every layer, for a number of sequences that each have a length of their own.
///
/// Room is made as it is needed: when the longest sequence exceeds it, it doubles.
#[derive(Debug, Clone)]
pub struct KeyValueCache {
    layers: Vec<LayerCache>,
    lengths: Vec<usize>,
    capacity: usize,
    /// The most tokens that a sequence can have.
    context: usize,
    device: Device,
}

impl KeyValueCache {
    /// An empty cache for some sequences, with room for `tokens` tokens of each to begin with.
    pub fn new(config: &ModelConfig, sequences: usize, tokens: usize, device: &Device) -> Self {
        let capacity = tokens.max(1);
        let shape = [config.kv_heads, sequences, capacity, config.head_dim];
        let layer = || LayerCache {
            keys: Tensor::zeros(shape, device),
            values: Tensor::zeros(shape, device),
        };
        Self {
            layers: config.layers.iter().map(|_| layer()).collect(),
            lengths: vec![0; sequences],
            capacity,
            context: config.context_length,
            device: device.clone(),
        }
    }

    /// Number of cached tokens of each sequence.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Forgets what a sequence has beyond its first `length` tokens; 0 frees it for another text.
    ///
    /// # Panics
    ///
    /// When the sequence has fewer tokens.
    pub fn truncate(&mut self, sequence: usize, length: usize) {
        let cached = &mut self.lengths[sequence];
        assert!(length <= *cached, "{length} of {cached} cached tokens");
        *cached = length;
    }

    /// Begins a step that adds to each of these sequences so many tokens, each at least one; the forward pass of those
    /// tokens follows.
    pub(crate) fn begin(&mut self, new: &[(usize, usize)]) -> Step<'_> {
        let segments = new.iter().map(|&(sequence, new)| Segment {
            past: self.lengths[sequence],
            new,
            blocks: vec![sequence],
        });
        let segments: Vec<Segment> = segments.collect();
        let longest = segments.iter().map(Segment::end).max().unwrap_or(0);
        if longest > self.capacity {
            self.capacity = longest.max((2 * self.capacity).min(self.context));
            for layer in &mut self.layers {
                layer.grow(self.capacity);
            }
        }
        for &(sequence, new) in new {
            self.lengths[sequence] += new;
        }
        Step {
            segments: Segments::new(&segments, self.capacity, &self.device),
            layers: &mut self.layers,
        }
    }
}

/// New tokens of some of a cache's sequences.
#[derive(Debug)]
pub struct Step<'a> {
    layers: &'a mut [LayerCache],
    segments: Segments,
}

impl Step<'_> {
    /// A layer's part.
    pub(crate) fn layer(&mut self, layer: usize) -> LayerStep<'_> {
        LayerStep {
            cache: &mut self.layers[layer],
            segments: &self.segments,
        }
    }

    /// The rotary rows of the step's tokens, from a table of at least as many positions as it is asked for.
    pub(crate) fn rotary(&self, table: impl FnOnce(usize) -> Rotary) -> Rotary {
        let segments = self.segments.list();
        let table = table(
            segments
                .iter()
                .map(|segment| segment.end())
                .max()
                .unwrap_or(0),
        );
        if let [only] = &segments[..] {
            return table.range(only.past, only.new);
        }
        let positions = segments
            .iter()
            .flat_map(|segment| segment.past..segment.end());
        let positions: Vec<i32> = positions.map(|position| position as i32).collect();
        let device = self.segments.table().device();
        table.at(&Tensor::from_ints(positions.as_slice(), &device))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::smallest;
    use firebox_runtime::device::{default_name, select};
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, values, wave};

    on_every_device!(
        what_is_cached_stays_as_the_cache_grows,
        a_truncated_sequence_is_written_anew,
    );

    /// The output for new tokens of a sequence, whose inputs begin at `phase`.
    fn attend(cache: &mut KeyValueCache, new: &[(usize, usize)], phase: f32) -> Vec<f32> {
        let device = cache.device.clone();
        let mut step = cache.begin(new);
        let rotary = step.rotary(|positions| Rotary::new(0, positions, 2, 1e4, &device));
        let input = |shift: f32| wave([rotary.rows(), 2], phase + shift, &device);
        let inputs = [input(0.0), input(0.3), input(0.6)];
        let layer = step.layer(0);
        values(layer.attend(inputs, Some(&rotary), None, AttentionSpec::new(1, 1, 2)))
    }

    fn what_is_cached_stays_as_the_cache_grows(device: Device) {
        let steps: [&[(usize, usize)]; 4] =
            [&[(1, 3)], &[(0, 2), (1, 1)], &[(2, 9), (1, 1)], &[(1, 20)]];
        let run = |tokens: usize| {
            let mut cache = KeyValueCache::new(&smallest(), 3, tokens, &device);
            let found = steps.map(|step| attend(&mut cache, step, step.len() as f32));
            (found.concat(), cache.lengths().to_vec(), cache.capacity)
        };
        let (grown, lengths, capacity) = run(0);
        assert_eq!((&lengths[..], capacity), (&[2, 25, 9][..], 25));
        let (whole, _, capacity) = run(40);
        assert_eq!(capacity, 40);
        assert_close("outputs", &grown, &whole, 2e-6).unwrap();
    }

    fn a_truncated_sequence_is_written_anew(device: Device) {
        let cache = || KeyValueCache::new(&smallest(), 2, 4, &device);
        let mut straight = cache();
        attend(&mut straight, &[(0, 3), (1, 2)], 0.0);
        let expected = attend(&mut straight, &[(0, 2)], 0.5);

        let mut back = cache();
        attend(&mut back, &[(0, 3), (1, 2)], 0.0);
        attend(&mut back, &[(0, 4), (1, 1)], 3.0);
        back.truncate(0, 3);
        assert_eq!(back.lengths(), [3, 3]);
        let found = attend(&mut back, &[(0, 2)], 0.5);
        assert_close("outputs", &found, &expected, 2e-6).unwrap();
    }

    #[test]
    #[should_panic(expected = "4 of 3 cached tokens")]
    fn a_sequence_is_not_truncated_to_more_than_it_has() {
        let mut cache = KeyValueCache::new(&smallest(), 1, 4, &select(default_name()).unwrap());
        attend(&mut cache, &[(0, 3)], 0.0);
        cache.truncate(0, 4);
    }
}
