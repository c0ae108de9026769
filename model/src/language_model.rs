//! The network: embedding → blocks → norm → head, or a rank's part of it.

mod parts;
mod seeing;
#[cfg(test)]
mod tests;

use std::convert::Infallible;

use burn::module::{Module, Param};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};

pub(crate) use seeing::CrossInputs;

use crate::batch::Batch;
use crate::cache::Step;
use crate::config::ModelConfig;
use crate::feed_forward::FeedForward;
use crate::layer::Layer;
use crate::layout::{Layout, Placement};
use crate::matrix::Matrix;
use crate::moe::{MixtureOfExperts, Routing};
use crate::norm::RmsNorm;
use crate::observer::{Observer, ResidualStream, Unobserved};
use crate::parallel::{Shard, TensorGroup};
use crate::parameters::{
    Axis, Initializer, ParameterInfo, ParameterList, ParameterSource, ParameterSpec,
    RandomParameters, Role,
};
use crate::parts::{LayerPart, Part};
use crate::rope;
use crate::vision::{Sight, TowerPart, VisionEncoder};
use firebox_kernels::rope::{Rotary, RotaryCache};
use firebox_kernels::{Precision, embedding, linear, linear_transposed};

/// A decoder-only mixture-of-experts language model.
///
/// Base maths and conventions are those of Hugging Face's Mixtral (arXiv 2401.04088).
///
/// It may be a rank's part of a model that many ranks hold together (see [`parallel`](crate::parallel)): a pipeline stage,
/// and of its matrices what the rank has among the tensor ranks of the stage. Its configuration is that of the whole model.
#[derive(Module, Debug)]
pub struct LanguageModel {
    /// `[vocab_size, d_model]`, with a tower a row for the image token and spare ones more; `None` on a pipeline stage that does without: neither the first one nor one whose head is
    /// tied to it.
    pub embedding: Option<Param<Tensor<2>>>,
    /// The blocks, in execution order; those of a pipeline stage are some of the model's.
    pub blocks: Vec<Layer>,
    /// The final norm, before the head; `None` on a pipeline stage that is not the last one.
    pub norm: Option<RmsNorm>,
    /// `[d_model, vocab_size]`; `None` if the head is tied to the embedding, or on another pipeline stage.
    pub head: Option<Matrix<2>>,
    /// What reads pictures; `None` in a model of text alone.
    pub vision: Option<VisionEncoder>,
    #[module(skip)]
    config: ModelConfig,
    #[module(skip)]
    precision: Precision,
    #[module(skip)]
    rotary: RotaryCache,
    /// Whose part this is; `None` for a whole model.
    #[module(skip)]
    shard: Option<Shard>,
    /// The ranks that share its matrices, once they are known to each other.
    #[module(skip)]
    group: Option<TensorGroup>,
}

/// What a pass begins with.
#[derive(Debug, Clone)]
pub enum Entry {
    /// Token ids, `[tokens]`, on the first stage.
    Tokens(Tensor<1, Int>),
    /// The residual stream, `[tokens, d_model]`, which the stage before has computed.
    Stream(Tensor<2>),
}

/// The output of a forward pass.
#[derive(Debug, Clone)]
pub struct ModelOutput {
    /// `[batch, sequence, vocab_size]`; of a tensor rank, those of its token ids.
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
    /// What the tower made of pictures, if there were any.
    pub vision: Option<VisionTrace>,
}

/// What a tower makes of the pictures of a batch.
#[derive(Debug, Clone)]
pub struct VisionTrace {
    /// The tower's parts, `[pictures, max_tiles, positions, values]` each; empty places of the batch are not among the
    /// pictures.
    pub parts: Vec<(TowerPart, Tensor<4>)>,
    /// What cross-attention takes keys and values from, `[rows, keys, d_model]`; zeros for empty places.
    pub states: Tensor<3>,
}

impl LanguageModel {
    /// Takes every parameter from `source`.
    ///
    /// # Errors
    ///
    /// When the source does not have a parameter of the required path and shape.
    pub fn new<S: ParameterSource>(config: &ModelConfig, source: &mut S) -> Result<Self, S::Error> {
        let initializer = Initializer::Normal(config.initializer_range);
        let vocabulary = (Axis::Vocabulary, config.vocab_size);
        let model = (Axis::Model, config.d_model);
        let shard = source.shard().cloned();
        let is_first = shard.as_ref().is_none_or(Shard::is_first_stage);
        let is_last = shard.as_ref().is_none_or(Shard::is_last_stage);
        let mut blocks = match &shard {
            Some(shard) => shard.layers(),
            None => 0..config.layers.len(),
        };
        let embedding = ParameterSpec::new(
            "embedding",
            Role::Embedding,
            [(Axis::Vocabulary, config.embedding_rows()), model],
            initializer,
        );
        let head = ParameterSpec::new("head", Role::Head, [model, vocabulary], initializer);
        Ok(Self {
            embedding: match is_first || is_last && config.tied_embeddings {
                true => Some(source.parameter(embedding)?),
                false => None,
            },
            blocks: blocks.try_fold(Vec::new(), |mut blocks, layer| {
                blocks.push(Layer::new(config, layer, source)?);
                Ok(blocks)
            })?,
            norm: match is_last {
                true => Some(RmsNorm::new(config, model, "norm", source)?),
                false => None,
            },
            head: match is_last && !config.tied_embeddings {
                true => Some(source.matrix(head)?),
                false => None,
            },
            vision: match &config.vision {
                Some(vision) if shard.as_ref().is_none_or(Shard::sees) => {
                    Some(VisionEncoder::new(config, vision, source)?)
                }
                _ => None,
            },
            config: config.clone(),
            precision: Precision::F32,
            rotary: RotaryCache::new(rope::frequencies(config)),
            shard,
            group: None,
        })
    }

    /// A model with random weights, which depend on the seed only, not on the device.
    pub fn random(config: &ModelConfig, seed: u64, device: &Device) -> Self {
        let built: Result<Self, Infallible> =
            Self::new(config, &mut RandomParameters::new(seed, device));
        let Ok(model) = built;
        model
    }

    /// Every parameter of a model, in the order of construction. Nothing is allocated.
    pub fn parameter_list(config: &ModelConfig) -> Vec<ParameterInfo> {
        let mut list = ParameterList::default();
        let Ok(_) = Self::new(config, &mut list);
        list.0
    }

    /// The model's configuration.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The same model with products of this precision, those of the gradients too: of projections, attention without a cache,
    /// feed-forwards and head. Everything else, the routers' products included, is f32; so are the weights.
    #[must_use]
    pub fn at_precision(mut self, precision: Precision) -> Self {
        self.precision = precision;
        for block in &mut self.blocks {
            block.set_precision(precision);
        }
        if let Some(vision) = &mut self.vision {
            vision.set_precision(precision);
        }
        self
    }

    /// The device that the parameters are on.
    pub fn device(&self) -> Device {
        self.blocks[0].attention_norm().gamma.lazy_device()
    }

    /// The type that its matrices are held in.
    pub fn weight_type(&self) -> DType {
        let projection = match &self.blocks[0] {
            Layer::Text(block) => block.attention.output(),
            Layer::Cross(block) => &block.cross_attention.query,
        };
        projection.weight.weight().dtype()
    }

    /// That of the products.
    pub fn precision(&self) -> Precision {
        self.precision
    }

    /// Number of parameters.
    pub fn parameters(&self) -> u64 {
        self.num_params() as u64
    }

    /// The logits at every position, and the routing.
    ///
    /// Padding must be at the end of a row, where causality hides it from the tokens; the outputs at padding are
    /// meaningless.
    ///
    /// # Shapes
    ///
    /// - `tokens`: `[batch, sequence]`, each below `vocab_size`
    ///
    /// # Panics
    ///
    /// When a sequence is longer than the context, or this is a pipeline stage of a model: that computes through
    /// [`parallel`](crate::parallel).
    pub fn forward(&self, tokens: Tensor<2, Int>) -> ModelOutput {
        self.observed(tokens, &Placement::causal(), &mut Unobserved)
    }

    /// The same of the tokens of a batch, where they stand.
    pub fn forward_batch(&self, batch: &Batch) -> ModelOutput {
        self.observed(batch.tokens.clone(), &batch.placement, &mut Unobserved)
    }

    /// [`forward`](Self::forward) of tokens that stand where `placement` says, with an observer of every part.
    pub fn observed(
        &self,
        tokens: Tensor<2, Int>,
        placement: &Placement,
        observer: &mut impl Observer,
    ) -> ModelOutput {
        let has_all = self.shard.as_ref().is_none_or(Shard::has_all_layers);
        assert!(has_all, "the logits of a model with all layers");
        let shape @ [batch, sequence] = tokens.dims();
        let entry = Entry::Tokens(tokens.flatten(0, 1));
        let (hidden, routing) = self.pass(entry, shape, placement, observer);
        let logits = self.logits(hidden);
        let logits = observer.output(LayerPart::outside(Part::Head), logits);
        let [_, ids] = logits.dims();
        ModelOutput {
            logits: logits.reshape([batch, sequence, ids]),
            routing,
        }
    }

    /// A forward pass that also returns the residual stream, for comparison with another implementation. See
    /// [`observed`](Self::observed) for the arguments.
    pub fn trace(&self, tokens: Tensor<2, Int>, placement: &Placement) -> Trace {
        let [batch, sequence] = tokens.dims();
        let whole = |hidden: Tensor<2>| hidden.reshape([batch, sequence, self.config.d_model]);
        let mut stream = ResidualStream::default();
        let output = self.observed(tokens, placement, &mut stream);
        Trace {
            hidden: stream.0.into_iter().map(whole).collect(),
            output,
            vision: None,
        }
    }

    /// The routing of the tokens of a batch, without computing the head.
    pub fn route(&self, batch: &Batch) -> Vec<Routing> {
        let entry = Entry::Tokens(batch.tokens.clone().flatten(0, 1));
        let shape = batch.tokens.dims();
        self.pass(entry, shape, &batch.placement, &mut Unobserved).1
    }

    /// The residual stream of `shape` tokens, `[batch · sequence, d_model]`, after the blocks of a stage, and after the final
    /// norm on the last one; and the routing of its MoE layers.
    ///
    /// # Panics
    ///
    /// When a sequence is longer than the context.
    pub(crate) fn pass(
        &self,
        entry: Entry,
        [batch, sequence]: [usize; 2],
        placement: &Placement,
        observer: &mut impl Observer,
    ) -> (Tensor<2>, Vec<Routing>) {
        let table = self.table(sequence, &self.device());
        let layout = placement.layout(batch, sequence, &table);
        self.hidden(entry, &layout, None, observer)
    }

    /// Sets the selection bias of every router, in the order of the MoE layers; see
    /// [`balance::update_bias`](crate::moe::balance::update_bias).
    ///
    /// # Panics
    ///
    /// When there are biases, but not one for each router.
    pub fn set_router_bias(&mut self, biases: &[Vec<f32>]) {
        assert!(
            biases.is_empty() || biases.len() == self.moe_layers().count(),
            "selection biases of {} routers",
            biases.len()
        );
        let moe_layers =
            self.blocks
                .iter_mut()
                .filter_map(|block| match &mut block.text_mut()?.feed_forward {
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
            .filter_map(|block| match &block.text()?.feed_forward {
                FeedForward::Moe(moe) => Some(moe),
                FeedForward::Dense(_) => None,
            })
    }

    /// See [`pass`](Self::pass).
    fn hidden(
        &self,
        entry: Entry,
        layout: &Layout,
        mut cache: Option<&mut Step>,
        observer: &mut impl Observer,
    ) -> (Tensor<2>, Vec<Routing>) {
        assert!(
            self.group.is_some() || self.shard.as_ref().is_none_or(Shard::is_undivided),
            "call `among` before running one rank's part of a model"
        );
        let mut x = match entry {
            Entry::Tokens(tokens) => {
                let embedded = self.embedded(tokens);
                observer.output(LayerPart::outside(Part::Embedding), embedded)
            }
            Entry::Stream(stream) => stream,
        };
        let first = self.shard.as_ref().map_or(0, |shard| shard.layers().start);
        let mut routing = Vec::with_capacity(self.blocks.len());
        let mut cached = 0; // layers that attend to the text
        for (place, layer) in self.blocks.iter().enumerate() {
            match (layer, &layout.sight) {
                (Layer::Text(block), _) => {
                    observer.residual(&x);
                    let cache = cache.as_deref_mut().map(|step| step.layer(cached));
                    let routed;
                    (x, routed) = block.forward(x, first + place, layout, cache, observer);
                    routing.extend(routed);
                    cached += 1;
                }
                (Layer::Cross(block), Some(sight)) => {
                    observer.residual(&x);
                    x = block.forward(x, first + place, sight, observer);
                }
                // Without pictures nobody sees anything.
                (Layer::Cross(_), None) => {}
            }
        }
        if let Some(norm) = &self.norm {
            x = observer.output(LayerPart::outside(Part::Norm), norm.forward(x));
            observer.residual(&x);
        }
        (x, routing)
    }

    /// The rows of the embedding table that `tokens` name, times their multiplier, `[tokens, d_model]`.
    fn embedded(&self, tokens: Tensor<1, Int>) -> Tensor<2> {
        let table = self.embedding.as_ref().expect("a first stage").val();
        let embedded = match (&self.group, &self.shard) {
            (Some(group), Some(shard)) if group.size() > 1 => group.embedding(
                table,
                tokens,
                shard.share(self.config.embedding_rows()).start,
            ),
            _ => embedding(table, tokens).cast(DType::F32),
        };
        match self.config.multipliers.embedding {
            1.0 => embedded,
            factor => embedded.mul_scalar(factor),
        }
    }

    /// See [`pass`](Self::pass), of the tokens of a step, `[tokens, d_model]`.
    pub(crate) fn stepped(
        &self,
        entry: Entry,
        step: &mut Step,
        sight: Option<Sight>,
    ) -> (Tensor<2>, Vec<Routing>) {
        let device = self.device();
        let rotary = step.rotary(|positions| self.table(positions, &device));
        let layout = Layout {
            sight,
            ..Layout::causal(1, rotary)
        };
        self.hidden(entry, &layout, Some(step), &mut Unobserved)
    }

    /// A table of at least so many rotary positions.
    fn table(&self, positions: usize, device: &Device) -> Rotary {
        let context_length = self.config.context_length;
        assert!(
            positions <= context_length,
            "{positions} tokens exceed the context of {context_length}",
        );
        self.rotary.table(positions, device)
    }

    /// The logits of the residual stream after the final norm, those of this rank's part of the vocabulary.
    ///
    /// # Shapes
    ///
    /// - `hidden`: `[tokens, d_model]`
    /// - output: `[tokens, token ids of this rank]`
    ///
    /// # Panics
    ///
    /// When this is a stage without a head.
    pub(crate) fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        // Fewer values than logits have to be divided.
        let hidden = match self.config.multipliers.logits_divisor {
            1.0 => hidden,
            divisor => hidden.div_scalar(divisor),
        };
        let hidden = match &self.group {
            Some(group) => group.enter(hidden),
            None => hidden,
        };
        match (&self.head, &self.embedding) {
            (Some(head), _) => linear(hidden, head.weight(), self.precision),
            (None, Some(embedding)) => linear_transposed(hidden, embedding.val(), self.precision),
            (None, None) => panic!("a last stage has a head"),
        }
    }
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
