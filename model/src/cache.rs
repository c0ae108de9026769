//! The key/value cache: keys and values of the earlier tokens of some sequences, for attention.
//!
//! It lies in blocks of some tokens each (PagedAttention, arXiv 2309.06180). A sequence takes blocks as it grows and
//! gives them back when it is truncated; sequences that begin alike can share them.

mod pool;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use burn::tensor::{Device, Int, Tensor};
use thiserror::Error;

use self::pool::BlockPool;
use crate::config::ModelConfig;
use crate::decode::Piece;
use crate::language_model::LanguageModel;
use crate::layer::Layer;
use crate::vision::{Gaze, PictureKeys, Sight};
use firebox_kernels::rope::Rotary;
use firebox_kernels::{
    AttentionSpec, CachedInput, Segment, Segments, SharedInput, cached_attention, shared_attention,
};

/// Tokens of a block where nobody says otherwise.
pub const BLOCK_TOKENS: usize = 16;

/// Keys and values of one layer.
#[derive(Debug, Clone)]
struct LayerCache {
    keys: Tensor<4>,           // [kv_heads, blocks, block_tokens, head_dim]
    values: Option<Tensor<4>>, // the same; none where the keys serve as values too
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
        let LayerCache { keys, values } = self.cache;
        let values = values.as_mut().expect("a cache of values");
        cached_attention(input, [keys, values])
    }

    /// The same with keys that serve as values too, after their rotation.
    ///
    /// # Shapes
    ///
    /// - `query`: `[rows, heads · head_dim]`, before the rotary embedding
    /// - `key`: `[rows, kv_heads · head_dim]`, before the rotary embedding
    /// - `rotary`: of each row
    /// - output: `[rows, heads · head_dim]`
    pub(crate) fn attend_shared(
        self,
        query: Tensor<2>,
        key: Tensor<2>,
        rotary: &Rotary,
        spec: AttentionSpec,
    ) -> Tensor<2> {
        let input = SharedInput {
            query,
            key,
            rotary,
            segments: self.segments,
            spec,
        };
        shared_attention(input, &mut self.cache.keys)
    }
}

impl LayerCache {
    /// All of its tensors, to be changed.
    fn tensors_mut(&mut self) -> impl Iterator<Item = &mut Tensor<4>> {
        std::iter::once(&mut self.keys).chain(&mut self.values)
    }

    /// Puts other blocks in the place of those that there are: of each, which one of them it was.
    fn lay(&mut self, sources: &Tensor<1, Int>) {
        let blocks = sources.dims()[0];
        for cached in self.tensors_mut() {
            let [kv_heads, so_far, tokens, head_dim] = cached.dims();
            match so_far {
                0 => {
                    *cached = Tensor::zeros([kv_heads, blocks, tokens, head_dim], &cached.device())
                }
                _ => cached.inplace(|cached| cached.select(1, sources.clone())),
            }
        }
    }

    /// What is in one block, to another.
    fn copy(&mut self, from: usize, to: usize) {
        for cached in self.tensors_mut() {
            let [kv_heads, _, tokens, head_dim] = cached.dims();
            let from = Tensor::<1, Int>::from_ints([from as i32], &cached.device());
            // A copy, where a slice would hold on to all of the cache, which were not changed in place then.
            let block = cached.clone().select(1, from);
            let place = [0..kv_heads, to..to + 1, 0..tokens, 0..head_dim];
            cached.inplace(|cached| cached.slice_assign(place, block));
        }
    }
}

/// A bounded cache has too few blocks left. What it holds is as before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("the cache needs {needed} more blocks, but {free} of {blocks} are free")]
pub struct CacheFull {
    /// Blocks that are needed.
    pub needed: usize,
    /// Blocks that nobody holds.
    pub free: usize,
    /// All blocks.
    pub blocks: usize,
}

/// How many blocks a cache has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// So many to begin with; their number doubles when all are held.
    Growing(usize),
    /// So many and never more. See [`KeyValueCache::reserve`] for what happens when they are all held.
    Bounded(usize),
}

/// Dimensions of the cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheShape {
    /// Number of layers that attend to the text.
    pub layers: usize,
    /// Key/value heads of a layer.
    pub kv_heads: usize,
    /// Values of a head.
    pub head_dim: usize,
    /// Whether keys serve as values too, so that there are no others (latent attention).
    pub shared: bool,
}

impl CacheShape {
    /// Bytes of a token's keys and values in all layers, in f32.
    pub fn token_bytes(&self) -> usize {
        let tensors = if self.shared { 1 } else { 2 };
        tensors * self.layers * self.kv_heads * self.head_dim * size_of::<f32>()
    }
}

impl From<&ModelConfig> for CacheShape {
    /// That of the whole model.
    fn from(config: &ModelConfig) -> Self {
        let layers = config.text_layers();
        match config.latent {
            None => Self {
                layers,
                kv_heads: config.kv_heads,
                head_dim: config.head_dim,
                shared: false,
            },
            Some(latent) => Self {
                layers,
                kv_heads: 1,
                head_dim: latent.cached(config.rotary_dim),
                shared: true,
            },
        }
    }
}

impl From<&LanguageModel> for CacheShape {
    /// Of the layers and heads that a rank has of the model.
    fn from(model: &LanguageModel) -> Self {
        let whole = Self::from(model.config());
        let mut layers = model.blocks.iter().filter_map(Layer::text);
        // A stage may have none.
        let Some(first) = layers.next() else {
            return Self { layers: 0, ..whole };
        };
        let ([kv_heads, head_dim], shared) = first.attention.cached();
        Self {
            layers: 1 + layers.count(),
            kv_heads,
            head_dim,
            shared,
        }
    }
}

/// The keys and values of every layer, for a number of sequences that each have a length of their own.
///
/// Room is made as it is needed, where it is not bounded: when all blocks are held, their number doubles.
#[derive(Debug, Clone)]
pub struct KeyValueCache {
    layers: Vec<LayerCache>,
    /// The blocks of each sequence, in the order of its tokens.
    blocks: Vec<Vec<usize>>,
    lengths: Vec<usize>,
    /// What each sequence sees besides its tokens.
    pictures: Vec<Option<SeenPictures>>,
    pool: BlockPool,
    block_tokens: usize,
    /// Whether there are no more blocks than at the beginning.
    bounded: bool,
    device: Device,
}

/// The pictures that a sequence sees.
#[derive(Debug, Clone)]
struct SeenPictures {
    keys: Arc<PictureKeys>,
    /// Where the cached image tokens stand, in order.
    places: Vec<usize>,
}

impl KeyValueCache {
    /// An empty cache for some sequences, with room for `tokens` tokens of each to begin with.
    pub fn new(
        shape: impl Into<CacheShape>,
        sequences: usize,
        tokens: usize,
        device: &Device,
    ) -> Self {
        let room = Room::Growing(sequences * tokens.max(1).div_ceil(BLOCK_TOKENS));
        Self::in_blocks(shape, sequences, room, BLOCK_TOKENS, device)
    }

    /// An empty cache for some sequences, in blocks of so many tokens.
    ///
    /// # Panics
    ///
    /// When blocks have no tokens.
    pub fn in_blocks(
        shape: impl Into<CacheShape>,
        sequences: usize,
        room: Room,
        block_tokens: usize,
        device: &Device,
    ) -> Self {
        assert!(block_tokens > 0, "a block holds a token at least");
        let CacheShape {
            layers,
            kv_heads,
            head_dim,
            shared,
        } = shape.into();
        let (Room::Growing(blocks) | Room::Bounded(blocks)) = room;
        let shape = [kv_heads, blocks, block_tokens, head_dim];
        let layer = || LayerCache {
            keys: Tensor::zeros(shape, device),
            values: (!shared).then(|| Tensor::zeros(shape, device)),
        };
        Self {
            layers: (0..layers).map(|_| layer()).collect(),
            blocks: vec![Vec::new(); sequences],
            lengths: vec![0; sequences],
            pictures: vec![None; sequences],
            pool: BlockPool::new(blocks),
            block_tokens,
            bounded: matches!(room, Room::Bounded(_)),
            device: device.clone(),
        }
    }

    /// Number of cached tokens of each sequence.
    pub fn lengths(&self) -> &[usize] {
        &self.lengths
    }

    /// Tokens of a block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Blocks that there is room for now.
    pub fn blocks(&self) -> usize {
        self.pool.blocks()
    }

    /// Blocks that sequences hold; those that several share count once.
    pub fn held_blocks(&self) -> usize {
        self.pool.blocks() - self.pool.free()
    }

    /// Blocks that some of the sequences hold; those that several of them share count once.
    pub fn held_blocks_of(&self, sequences: impl Iterator<Item = usize>) -> usize {
        let mut is_held = vec![false; self.pool.blocks()];
        let blocks = sequences.flat_map(|sequence| &self.blocks[sequence]);
        blocks
            .filter(|&&block| !std::mem::replace(&mut is_held[block], true))
            .count()
    }

    /// Blocks that a step can take; no bound is `None`.
    pub fn free_blocks(&self) -> Option<usize> {
        self.bounded.then(|| self.pool.free())
    }

    /// Bytes of a block's keys and values, in all layers.
    pub fn block_bytes(&self) -> usize {
        let of_layer = |layer: &LayerCache| {
            let [kv_heads, _, tokens, head_dim] = layer.keys.dims();
            let values = kv_heads * tokens * head_dim;
            let tensors = std::iter::once(&layer.keys).chain(&layer.values);
            let of_value: usize = tensors.map(|tensor| tensor.dtype().size()).sum();
            values * of_value
        };
        self.layers.iter().map(of_layer).sum()
    }

    /// Forgets what a sequence has beyond its first `length` tokens, and gives back the blocks that hold nothing else; 0
    /// frees it for another text.
    ///
    /// # Panics
    ///
    /// When the sequence has fewer tokens.
    pub fn truncate(&mut self, sequence: usize, length: usize) {
        let cached = &mut self.lengths[sequence];
        assert!(length <= *cached, "{length} of {cached} cached tokens");
        *cached = length;
        if let Some(pictures) = &mut self.pictures[sequence] {
            pictures.places.retain(|&place| place < length);
        }
        let kept = length.div_ceil(self.block_tokens);
        for block in self.blocks[sequence].drain(kept..) {
            self.pool.give_back(block);
        }
    }

    /// Makes an empty sequence begin with the first `length` tokens of another one, and share their blocks. Where that
    /// ends within a block, the first of the sequences that goes on takes a copy of it.
    ///
    /// # Panics
    ///
    /// When the other sequence has fewer tokens, or the sequence is not empty.
    pub fn fork(&mut self, from: usize, length: usize, to: usize) {
        let (cached, own) = (self.lengths[from], self.lengths[to]);
        assert!(length <= cached, "{length} of {cached} cached tokens");
        assert!(
            own == 0,
            "a sequence of {own} cached tokens is to begin with others"
        );
        self.truncate(to, 0);
        let shared = self.blocks[from][..length.div_ceil(self.block_tokens)].to_vec();
        for &block in &shared {
            self.pool.share(block);
        }
        (self.blocks[to], self.lengths[to]) = (shared, length);
        self.pictures[to] = self.pictures[from].clone();
        if let Some(pictures) = &mut self.pictures[to] {
            pictures.places.retain(|&place| place < length);
        }
    }

    /// Gives a sequence pictures to see, or takes them from it. Which of them a token sees follows from the image tokens up to
    /// it.
    ///
    /// # Panics
    ///
    /// When the sequence is not empty, and is to see others than before.
    pub fn show(&mut self, sequence: usize, pictures: Option<&Arc<PictureKeys>>) {
        let same = match (self.shown(sequence), pictures) {
            (Some(before), Some(pictures)) => Arc::ptr_eq(before, pictures),
            (None, None) => true,
            _ => false,
        };
        if same {
            return;
        }
        assert!(
            self.lengths[sequence] == 0,
            "a sequence of some tokens sees other pictures"
        );
        self.pictures[sequence] = pictures.map(|keys| SeenPictures {
            keys: keys.clone(),
            places: Vec::new(),
        });
    }

    /// The pictures that a sequence sees.
    pub(crate) fn shown(&self, sequence: usize) -> Option<&Arc<PictureKeys>> {
        self.pictures[sequence].as_ref().map(|seen| &seen.keys)
    }

    /// What new tokens of some sequences see; called before the step [begins](Self::begin).
    pub(crate) fn sight(&mut self, pieces: &[Piece], image_token: u32) -> Option<Sight> {
        let mut glances = Vec::new();
        let mut rows = 0;
        for piece in pieces {
            let first = rows;
            rows += piece.tokens.len();
            let Some(pictures) = &mut self.pictures[piece.sequence] else {
                continue;
            };
            let cached = self.lengths[piece.sequence];
            let mut gaze = Gaze::after(&pictures.places, cached);
            let mut seen = Vec::with_capacity(piece.tokens.len());
            for (place, &id) in piece.tokens.iter().enumerate() {
                let is_image = id == image_token;
                seen.push(gaze.next(is_image));
                if is_image {
                    pictures.places.push(cached + place);
                }
            }
            glances.extend(pictures.keys.glance(&seen, first));
        }
        Sight::of_glances(rows, glances, &self.device)
    }

    /// Takes the blocks that a step needs which adds to each of these sequences so many tokens. The step need not come:
    /// [`truncate`](Self::truncate) gives back what a sequence has too many of.
    ///
    /// # Errors
    ///
    /// When a bounded cache has too few blocks. Nothing is taken then.
    pub fn reserve(&mut self, new: &[(usize, usize)]) -> Result<(), CacheFull> {
        self.make_room(self.needed(new))?;
        for &(sequence, new) in new {
            let length = self.lengths[sequence];
            if let Some(place) = self.written(sequence)
                && self.pool.holders(self.blocks[sequence][place]) > 1
            {
                self.copy(sequence, place);
            }
            let blocks = &mut self.blocks[sequence];
            let all = (length + new).div_ceil(self.block_tokens);
            if let Some(count) = all.checked_sub(blocks.len()) {
                let taken = self.pool.take(count, blocks.last().copied());
                blocks.extend(taken);
            }
        }
        Ok(())
    }

    /// The place among the blocks of a sequence of the one that its next token joins others in.
    fn written(&self, sequence: usize) -> Option<usize> {
        let length = self.lengths[sequence];
        (!length.is_multiple_of(self.block_tokens)).then_some(length / self.block_tokens)
    }

    /// How many free blocks a step takes that adds to each of these sequences so many tokens.
    pub fn needed(&self, new: &[(usize, usize)]) -> usize {
        let more = new.iter().map(|&(sequence, new)| {
            let all = (self.lengths[sequence] + new).div_ceil(self.block_tokens);
            all.saturating_sub(self.blocks[sequence].len())
        });
        let written = new.iter().filter_map(|&(sequence, _)| {
            let place = self.written(sequence)?;
            Some(self.blocks[sequence][place])
        });
        let mut written: Vec<usize> = written.collect();
        written.sort_unstable();
        // The last one that holds a block keeps it.
        let copies = written.chunk_by(|a, b| a == b);
        let copies = copies.map(|same| same.len().min(self.pool.holders(same[0]) - 1));
        more.sum::<usize>() + copies.sum::<usize>()
    }

    /// Sees to it that so many blocks are free.
    fn make_room(&mut self, needed: usize) -> Result<(), CacheFull> {
        let (blocks, free) = (self.pool.blocks(), self.pool.free());
        if needed <= free {
            return Ok(());
        }
        if self.bounded {
            return Err(CacheFull {
                needed,
                free,
                blocks,
            });
        }
        let blocks = (blocks + needed - free).max(2 * blocks);
        let sources = self.pool.grow(blocks, &mut self.blocks);
        let sources: Vec<i32> = sources.into_iter().map(|block| block as i32).collect();
        let sources = Tensor::from_ints(sources.as_slice(), &self.device);
        for layer in &mut self.layers {
            layer.lay(&sources);
        }
        Ok(())
    }

    /// Replaces a shared block of a sequence by a copy.
    fn copy(&mut self, sequence: usize, place: usize) {
        let shared = self.blocks[sequence][place];
        let before = place
            .checked_sub(1)
            .map(|place| self.blocks[sequence][place]);
        let own = self.pool.take(1, before)[0];
        for layer in &mut self.layers {
            layer.copy(shared, own);
        }
        self.pool.give_back(shared);
        self.blocks[sequence][place] = own;
    }

    /// Begins a step that adds to each of these sequences so many tokens, each at least one; the forward pass of those
    /// tokens follows.
    ///
    /// # Panics
    ///
    /// When a bounded cache has too few blocks; see [`reserve`](Self::reserve).
    pub(crate) fn begin(&mut self, new: &[(usize, usize)]) -> Step<'_> {
        if let Err(full) = self.reserve(new) {
            panic!("{full}");
        }
        let segments = new.iter().map(|&(sequence, new)| Segment {
            past: self.lengths[sequence],
            new,
            blocks: self.blocks[sequence].clone(),
        });
        let segments: Vec<Segment> = segments.collect();
        for &(sequence, new) in new {
            self.lengths[sequence] += new;
        }
        Step {
            segments: Segments::new(&segments, self.block_tokens, &self.device),
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
        let ends = segments.iter().map(|segment| segment.end());
        let table = table(ends.max().unwrap_or(0));
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
