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
use crate::parameters::{Initial, ParameterSource, RandomParameters, Shapes};
use firebox_kernels::rope::Rotary;
use firebox_kernels::{embedding, latency_bound, linear, linear_transposed};

/// A decoder-only mixture-of-experts language model.
///
/// Base maths and conventions are those of Hugging Face's Mixtral (arXiv 2401.04088).
#[derive(Module, Debug)]
pub struct LanguageModel {
    /// `[vocabulary, d_model]`
    pub embedding: Param<Tensor<2>>,
    /// In the order in which they run.
    pub blocks: Vec<Block>,
    /// Before the head.
    pub norm: RmsNorm,
    /// `[d_model, vocabulary]`; `None` when the embedding serves as the head.
    pub head: Option<Param<Tensor<2>>>,
    #[module(skip)]
    config: ModelConfig,
}

/// What a model says of some tokens.
#[derive(Debug, Clone)]
pub struct ModelOutput {
    /// Scores of the next token, `[batch, sequence, vocabulary]`.
    pub logits: Tensor<3>,
    /// What each layer's router did; empty for a dense model.
    pub routing: Vec<Routing>,
}

/// A [`ModelOutput`] and what led to it.
#[derive(Debug, Clone)]
pub struct Trace {
    /// The residual stream, each `[batch, sequence, d_model]`: the embeddings, then after each block but the
    /// last, then after the last block and the norm that follows it.
    pub hidden: Vec<Tensor<3>>,
    /// What `forward` gives.
    pub output: ModelOutput,
}

impl LanguageModel {
    /// Takes every parameter from `source`.
    ///
    /// # Errors
    ///
    /// Those of the source.
    pub fn new<S: ParameterSource>(config: &ModelConfig, source: &mut S) -> Result<Self, S::Error> {
        let initial = Initial::Normal(config.initializer_range);
        let (vocabulary, d_model) = (config.vocabulary, config.d_model);
        let blocks = 0..config.layers;
        Ok(Self {
            embedding: source.parameter("embedding", [vocabulary, d_model], initial)?,
            blocks: blocks
                .map(|layer| Block::new(config, layer, source))
                .collect::<Result<_, _>>()?,
            norm: RmsNorm::new(config, d_model, "norm", source)?,
            head: match config.tied_embeddings {
                true => None,
                false => Some(source.parameter("head", [d_model, vocabulary], initial)?),
            },
            config: config.clone(),
        })
    }

    /// A fresh model whose weights depend on the seed alone, not on the device.
    pub fn random(config: &ModelConfig, seed: u64, device: &Device) -> Self {
        let built: Result<Self, Infallible> =
            Self::new(config, &mut RandomParameters { seed, device });
        let Ok(model) = built;
        model
    }

    /// Path and shape of every parameter of a model, in the order in which it is built. Nothing is allocated,
    /// however large the model is.
    pub fn shapes(config: &ModelConfig) -> Vec<(String, Vec<usize>)> {
        let mut shapes = Shapes::default();
        let Ok(_) = Self::new(config, &mut shapes);
        shapes.0
    }

    /// Its shape.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// Number of its parameters.
    pub fn parameters(&self) -> u64 {
        self.num_params() as u64
    }

    /// Scores of the next token at every position, and what the routers did.
    ///
    /// Padding stands at the end of a row, where causality hides it from the tokens; what is computed for
    /// it means nothing.
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

    /// The same with everything on the way, for comparison with another implementation. With `valid`, padding may
    /// stand anywhere in a row: no token sees it, and what is computed for it means nothing. Without, the arithmetic
    /// is that of [`forward`](Self::forward) to the last bit.
    ///
    /// # Shapes
    ///
    /// - `tokens`: `[batch, sequence]`, each below `vocabulary`
    /// - `valid`: `batch · sequence` values, false for padding; `None` where there is none
    ///
    /// # Panics
    ///
    /// When a sequence is longer than the context, or `valid` of another length.
    pub fn trace(&self, tokens: Tensor<2, Int>, valid: Option<&[bool]>) -> Trace {
        let [batch, sequence] = tokens.dims();
        let whole = |hidden: Tensor<2>| hidden.reshape([batch, sequence, self.config.d_model]);
        let mut stream = Vec::with_capacity(self.config.layers + 1);
        let (hidden, routing) = self.hidden(tokens, valid, None, |x| {
            stream.push(whole(x.clone()));
        });
        // The last norm belongs to the last state.
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

    /// What the routers do with these tokens; the head is not computed.
    ///
    /// # Shapes
    ///
    /// - `tokens`: `[batch, sequence]`
    pub fn route(&self, tokens: Tensor<2, Int>) -> Vec<Routing> {
        self.hidden(tokens, None, None, |_| ()).1
    }

    /// Scores of the token after the last of each row, given those already in the cache, to which
    /// these are added.
    ///
    /// # Shapes
    ///
    /// - `tokens`: `[batch, new]`
    /// - output: `[batch, vocabulary]`
    ///
    /// # Panics
    ///
    /// When the cache has no room for them; see [`KeyValueCache::remaining`].
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

    /// Sets the selection bias of every router, in the order of the layers that have one; see
    /// [`balance::update_bias`](crate::moe::balance::update_bias).
    pub fn set_router_bias(&mut self, biases: &[Vec<f32>]) {
        let mixtures = self
            .blocks
            .iter_mut()
            .filter_map(|block| match &mut block.feed_forward {
                FeedForward::Moe(mixture) => Some(mixture),
                FeedForward::Dense(_) => None,
            });
        for (mixture, bias) in mixtures.zip(biases) {
            mixture.router.bias.clone_from(bias);
        }
    }

    /// The selection bias of every router, in the order of the layers that have one; empty ones where it
    /// was never on.
    pub fn router_bias(&self) -> Vec<Vec<f32>> {
        let biases = self.mixtures().map(|mixture| mixture.router.bias.clone());
        biases.collect()
    }

    fn mixtures(&self) -> impl Iterator<Item = &MixtureOfExperts> {
        self.blocks
            .iter()
            .filter_map(|block| match &block.feed_forward {
                FeedForward::Moe(mixture) => Some(mixture),
                FeedForward::Dense(_) => None,
            })
    }

    /// The residual stream after the last norm, `[batch · sequence, d_model]`. `observe` sees it before the
    /// first block and after each.
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

/// What a position must not see: later ones, and padding. A padded one sees itself alone, since softmax
/// over nothing is no number.
///
/// # Shapes
///
/// - `valid`: `batch · length` values
/// - output: `[batch, 1, length, length]`, true where it must not
fn padding_mask(valid: &[bool], batch: usize, length: usize, device: &Device) -> Tensor<4, Bool> {
    assert_eq!(valid.len(), batch * length, "one flag a token");
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
