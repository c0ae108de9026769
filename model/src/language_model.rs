//! The whole network: embedding → blocks → norm → head.

use std::convert::Infallible;

use burn::module::{Module, Param};
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};

use crate::block::Block;
use crate::cache::KeyValueCache;
use crate::config::ModelConfig;
use crate::feed_forward::FeedForward;
use crate::moe::{MixtureOfExperts, Routing};
use crate::norm::RmsNorm;
use crate::parameters::{Initializer, ParameterSource, RandomParameters, Shapes};
use firebox_kernels::rope::Rotary;
use firebox_kernels::{embedding, latency_bound, linear, linear_transposed};

/// A decoder-only mixture-of-experts language model.
///
/// Base maths and conventions are those of Hugging Face's Mixtral (arXiv 2401.04088).
#[derive(Module, Debug)]
pub struct LanguageModel {
    /// `[vocabulary, d_model]`
    pub embedding: Param<Tensor<2>>,
    /// The blocks, in execution order.
    pub blocks: Vec<Block>,
    /// The final norm, before the head.
    pub norm: RmsNorm,
    /// `[d_model, vocabulary]`; `None` if the head is tied to the embedding.
    pub head: Option<Param<Tensor<2>>>,
    #[module(skip)]
    config: ModelConfig,
}

/// The output of a forward pass.
#[derive(Debug, Clone)]
pub struct ModelOutput {
    /// `[batch, sequence, vocabulary]`
    pub logits: Tensor<3>,
    /// The routing of each MoE layer; empty for a dense model.
    pub routing: Vec<Routing>,
}

/// A [`ModelOutput`] and the residual stream.
#[derive(Debug, Clone)]
pub struct Trace {
    /// The residual stream, each `[batch, sequence, d_model]`: the embeddings, then the stream after each block but the
    /// last, then after the last block and the final norm.
    pub hidden: Vec<Tensor<3>>,
    /// The output of `forward`.
    pub output: ModelOutput,
}

impl LanguageModel {
    /// Takes every parameter from `source`.
    ///
    /// # Errors
    ///
    /// When the source does not have a parameter of the required path and shape.
    pub fn new<S: ParameterSource>(config: &ModelConfig, source: &mut S) -> Result<Self, S::Error> {
        let initializer = Initializer::Normal(config.initializer_range);
        let (vocabulary, d_model) = (config.vocabulary, config.d_model);
        let blocks = 0..config.layers;
        Ok(Self {
            embedding: source.parameter("embedding", [vocabulary, d_model], initializer)?,
            blocks: blocks
                .map(|layer| Block::new(config, layer, source))
                .collect::<Result<_, _>>()?,
            norm: RmsNorm::new(config, d_model, "norm", source)?,
            head: if config.tied_embeddings {
                None
            } else {
                Some(source.parameter("head", [d_model, vocabulary], initializer)?)
            },
            config: config.clone(),
        })
    }

    /// A model with random weights, which depend on the seed only, not on the device.
    pub fn random(config: &ModelConfig, seed: u64, device: &Device) -> Self {
        let built: Result<Self, Infallible> =
            Self::new(config, &mut RandomParameters { seed, device });
        let Ok(model) = built;
        model
    }

    /// Path and shape of every parameter of a model, in the order of construction. Nothing is allocated.
    pub fn shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
        let mut shapes = Shapes::default();
        let Ok(_) = Self::new(config, &mut shapes);
        shapes.0
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Number of parameters.
    pub fn parameters(&self) -> u64 {
        self.num_params() as u64
    }

    /// The logits at every position, and the routing.
    ///
    /// Padding must be at the end of a row, where the causal mask hides it from the tokens; the outputs at padding are
    /// meaningless.
    ///
    /// # Shapes
    ///
    /// - `tokens`: `[batch, sequence]`, each below `vocabulary`
    ///
    /// # Panics
    ///
    /// When a sequence is longer than the context.
    pub fn forward(&self, tokens: Tensor<2, Int>) -> ModelOutput {
        let [batch, sequence] = tokens.dims();
        let (hidden, routing) = self.hidden(tokens, None, None, |_| ());
        let logits = self
            .logits(hidden)
            .reshape([batch, sequence, self.config.vocabulary]);
        ModelOutput { logits, routing }
    }

    /// A forward pass that also returns the residual stream, for comparison with another implementation. With `valid`,
    /// padding may be anywhere in a row: no token attends to it, and the outputs at padding are meaningless. Without
    /// `valid`, the results are bit-identical to those of [`forward`](Self::forward).
    ///
    /// # Shapes
    ///
    /// - `tokens`: `[batch, sequence]`, each below `vocabulary`
    /// - `valid`: `batch · sequence` values, false for padding; `None` without padding
    ///
    /// # Panics
    ///
    /// When a sequence is longer than the context, or `valid` does not have `batch · sequence` values.
    pub fn trace(&self, tokens: Tensor<2, Int>, valid: Option<&[bool]>) -> Trace {
        let [batch, sequence] = tokens.dims();
        let whole = |hidden: Tensor<2>| hidden.reshape([batch, sequence, self.config.d_model]);
        let mut stream = Vec::with_capacity(self.config.layers + 1);
        let (hidden, routing) = self.hidden(tokens, valid, None, |x| {
            stream.push(whole(x.clone()));
        });
        // The last hidden state is the one after the final norm.
        stream.pop();
        stream.push(whole(hidden.clone()));
        let logits = self
            .logits(hidden)
            .reshape([batch, sequence, self.config.vocabulary]);
        Trace {
            hidden: stream,
            output: ModelOutput { logits, routing },
        }
    }

    /// The routing of these tokens, without computing the head.
    ///
    /// # Shapes
    ///
    /// - `tokens`: `[batch, sequence]`
    pub fn route(&self, tokens: Tensor<2, Int>) -> Vec<Routing> {
        self.hidden(tokens, None, None, |_| ()).1
    }

    /// The logits at the last position of each row, given the tokens already in the cache, to which these are appended.
    ///
    /// # Shapes
    ///
    /// - `tokens`: `[batch, new]`
    /// - output: `[batch, vocabulary]`
    ///
    /// # Panics
    ///
    /// When the cache's capacity or the context is exceeded; see [`KeyValueCache::remaining`].
    pub fn decode(&self, tokens: Tensor<2, Int>, cache: &mut KeyValueCache) -> Tensor<2> {
        let [batch, new] = tokens.dims();
        let device = tokens.device();
        latency_bound(batch * new, &device, || {
            let (hidden, _) = self.hidden(tokens, None, Some(cache), |_| ());
            let last = hidden
                .reshape([batch, new, self.config.d_model])
                .narrow(1, new - 1, 1);
            self.logits(last.squeeze_dim::<2>(1))
        })
    }

    /// Sets the selection bias of every router, in the order of the MoE layers; see
    /// [`balance::update_bias`](crate::moe::balance::update_bias).
    pub fn set_router_bias(&mut self, biases: &[Vec<f32>]) {
        let moe_layers = self
            .blocks
            .iter_mut()
            .filter_map(|block| match &mut block.feed_forward {
                FeedForward::Moe(moe) => Some(moe),
                FeedForward::Dense(_) => None,
            });
        for (moe, bias) in moe_layers.zip(biases) {
            moe.router.bias.clone_from(bias);
        }
    }

    /// The selection bias of every router, in the order of the MoE layers; empty where bias balancing was never
    /// on.
    pub fn router_bias(&self) -> Vec<Vec<f32>> {
        let biases = self.moe_layers().map(|moe| moe.router.bias.clone());
        biases.collect()
    }

    fn moe_layers(&self) -> impl Iterator<Item = &MixtureOfExperts> {
        self.blocks
            .iter()
            .filter_map(|block| match &block.feed_forward {
                FeedForward::Moe(moe) => Some(moe),
                FeedForward::Dense(_) => None,
            })
    }

    /// The residual stream after the final norm, `[batch · sequence, d_model]`. `observe` is called with the stream
    /// before the first block and after each block.
    fn hidden(
        &self,
        tokens: Tensor<2, Int>,
        valid: Option<&[bool]>,
        mut cache: Option<&mut KeyValueCache>,
        mut observe: impl FnMut(&Tensor<2>),
    ) -> (Tensor<2>, Vec<Routing>) {
        let [batch, new] = tokens.dims();
        let config = &self.config;
        let past = cache.as_ref().map_or(0, |cache| cache.length());
        assert!(
            past + new <= config.context,
            "{} tokens exceed the context of {}",
            past + new,
            config.context
        );
        let device = tokens.device();
        let rotary = Rotary::new(past, new, config.head_dim, config.rope_theta, &device);
        let mask = valid.map(|valid| padding_mask(valid, batch, new, &device));

        let mut x = self.embedded(tokens);
        observe(&x);
        let mut routing = Vec::with_capacity(config.layers);
        for (layer, block) in self.blocks.iter().enumerate() {
            let cache = cache.as_deref_mut().map(|cache| &mut cache.layers[layer]);
            let routed;
            (x, routed) = block.forward(x, batch, &rotary, mask.as_ref(), cache);
            observe(&x);
            routing.extend(routed);
        }
        (self.norm.forward(x), routing)
    }

    /// `[batch · sequence, d_model]`
    pub(crate) fn embedded(&self, tokens: Tensor<2, Int>) -> Tensor<2> {
        embedding(self.embedding.val(), tokens.flatten(0, 1)).cast(DType::F32)
    }

    pub(crate) fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        match &self.head {
            Some(head) => linear(hidden, head.val()),
            None => linear_transposed(hidden, self.embedding.val()),
        }
    }
}

/// Mask of the positions that each position must not attend to: later ones, and padding. A padded position attends to
/// itself only, because a softmax over an empty set is NaN.
///
/// # Shapes
///
/// - `valid`: `batch · length` values
/// - output: `[batch, 1, length, length]`, true where attention is not allowed
fn padding_mask(valid: &[bool], batch: usize, length: usize, device: &Device) -> Tensor<4, Bool> {
    assert_eq!(valid.len(), batch * length, "one flag per token");
    let mut hidden = Vec::with_capacity(batch * length * length);
    for row in valid.chunks(length) {
        for query in 0..length {
            let keys = row.iter().enumerate();
            hidden.extend(keys.map(|(key, &valid)| key != query && (key > query || !valid)));
        }
    }
    Tensor::from_data(TensorData::new(hidden, [batch, 1, length, length]), device)
}

/// Token ids as a tensor.
///
/// # Shapes
///
/// - `rows`: sequences of equal length
/// - output: `[rows, length]`
pub fn token_tensor<'a>(
    rows: impl ExactSizeIterator<Item = &'a [u32]>,
    device: &Device,
) -> Tensor<2, Int> {
    let count = rows.len();
    let values: Vec<i32> = rows.flatten().map(|&id| id as i32).collect();
    let length = values.len() / count.max(1);
    Tensor::from_data(TensorData::new(values, [count, length]), device)
}
