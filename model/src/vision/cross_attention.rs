//! Attention of a text to the pictures that it sees.

use burn::module::Module;
use burn::tensor::Tensor;

use super::sight::{Sight, View};
use crate::config::ModelConfig;
use crate::linear::Linear;
use crate::norm::RmsNorm;
use crate::parallel::TensorGroup;
use crate::parameters::{Axis, Initializer, ParameterSource, ParameterSpec, Role};
use firebox_kernels::{AttentionSpec, BiasedInput, Precision, biased_attention, biased_weights};

/// Grouped-query attention whose keys and values come of pictures: `softmax(q kᵀ / √head_dim) v` over the positions of the
/// tiles that a token sees, with norms of the queries and the keys by head, and without positions.
#[derive(Module, Debug)]
pub struct CrossAttention {
    /// `[d_model, heads · head_dim]`
    pub query: Linear,
    /// `[d_model, kv_heads · head_dim]`
    pub key: Linear,
    /// `[d_model, kv_heads · head_dim]`
    pub value: Linear,
    /// `[heads · head_dim, d_model]`
    pub output: Linear,
    /// Norm of each query head, with gains that all heads share.
    pub query_norm: RmsNorm,
    /// Norm of each key head.
    pub key_norm: RmsNorm,
    /// Of the heads that are here.
    #[module(skip)]
    spec: AttentionSpec,
    /// Of the projections.
    #[module(skip)]
    pub precision: Precision,
    /// The ranks that its output is added up over, each of which has a part of the heads.
    #[module(skip)]
    group: Option<TensorGroup>,
}

/// Keys and values of pictures in one layer.
#[derive(Debug, Clone)]
pub struct LayerKeys {
    /// After their norm, `[batch · keys, kv_heads · head_dim]`.
    pub(super) keys: Tensor<2>,
    /// `[batch · keys, kv_heads · head_dim]`
    pub(super) values: Tensor<2>,
}

impl CrossAttention {
    /// Takes the parameters from `source`, under `path`.
    ///
    /// # Errors
    ///
    /// When the source does not have a parameter of the required path and shape.
    pub fn new<S: ParameterSource>(
        config: &ModelConfig,
        path: &str,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        let (heads, kv_heads, head_dim) = (config.heads, config.kv_heads, config.head_dim);
        let model = (Axis::Model, config.d_model);
        let all_heads = (Axis::Heads, heads * head_dim);
        let all_kv_heads = (Axis::KvHeads, kv_heads * head_dim);
        let projection = |name: &str, dimensions, deviation, source: &mut S| {
            let initializer = Initializer::Normal(deviation);
            let path = format!("{path}.{name}");
            let spec = ParameterSpec::new(path, Role::CrossAttention, dimensions, initializer);
            Linear::new(spec, false, source)
        };
        let norm = |name: &str, source: &mut S| {
            let width = (Axis::HeadDim, head_dim);
            RmsNorm::new(config, width, &format!("{path}.{name}"), source)
        };
        let (range, residual) = (
            config.initializer_range,
            config.residual_initializer_range(),
        );
        let query = projection("query", [model, all_heads], range, source)?;
        let key = projection("key", [model, all_kv_heads], range, source)?;
        // A rank has some of the heads.
        let heads_of = |projection: &Linear| projection.weight.dims()[1] / head_dim;
        Ok(Self {
            spec: AttentionSpec::new(heads_of(&query), heads_of(&key), head_dim),
            query,
            key,
            value: projection("value", [model, all_kv_heads], range, source)?,
            output: projection("output", [all_heads, model], residual, source)?,
            query_norm: norm("query_norm", source)?,
            key_norm: norm("key_norm", source)?,
            precision: Precision::F32,
            group: None,
        })
    }

    /// Makes this one rank of a tensor-parallel group, with its share of the heads.
    pub(crate) fn join(&mut self, group: &TensorGroup) {
        self.group = Some(group.clone());
    }

    /// The keys and values of states.
    ///
    /// # Shapes
    ///
    /// - `states`: `[batch, keys, d_model]`
    pub fn keys(&self, states: Tensor<3>) -> LayerKeys {
        let rows = self.entering(states.flatten(0, 1));
        let keys = self.key.forward(rows.clone(), self.precision);
        LayerKeys {
            keys: self.by_head(&self.key_norm, keys),
            values: self.value.forward(rows, self.precision),
        }
    }

    /// Rows that every rank has, of which each computes its heads.
    fn entering(&self, rows: Tensor<2>) -> Tensor<2> {
        match &self.group {
            Some(group) => group.enter(rows),
            None => rows,
        }
    }

    /// The norm of each head of rows.
    fn by_head(&self, norm: &RmsNorm, rows: Tensor<2>) -> Tensor<2> {
        let shape = rows.dims();
        let head_dim = self.spec.head_dim;
        let heads = rows.reshape([shape[0] * shape[1] / head_dim, head_dim]);
        norm.forward(heads).reshape(shape)
    }

    /// How much each token attends to each position of the pictures, in the mean over `heads`, those of all ranks; that of
    /// blind tokens means nothing.
    ///
    /// # Shapes
    ///
    /// - `x`: `[tokens, d_model]`
    /// - output: `[batch, length, keys]`
    ///
    /// # Panics
    ///
    /// When the sight is not that of a batch.
    pub fn mean_weights(&self, x: Tensor<2>, sight: &Sight, heads: usize) -> Tensor<3> {
        let View::States(seen) = &sight.view else {
            panic!("the sight of a batch");
        };
        let query = self.by_head(&self.query_norm, self.query.forward(x, self.precision));
        let keys = self.keys(seen.states.clone()).keys;
        let weights = biased_weights(query, keys, &seen.bias, &self.spec);
        let sum = weights.sum_dim(1).squeeze_dim::<3>(1);
        let sum = match &self.group {
            Some(group) => group.sum(sum),
            None => sum,
        };
        sum.div_scalar(heads as f64)
    }

    /// What the tokens take of the pictures; of what blind tokens take nothing is meant.
    ///
    /// # Shapes
    ///
    /// - `x`, output: `[tokens, d_model]`
    pub fn forward(&self, x: Tensor<2>, layer: usize, sight: &Sight) -> Tensor<2> {
        let x = self.entering(x);
        let query = self.by_head(&self.query_norm, self.query.forward(x, self.precision));
        let of = |query: Tensor<2>, keys: LayerKeys, bias: &Tensor<3>| {
            biased_attention(BiasedInput {
                query,
                key: keys.keys,
                value: keys.values,
                bias,
                spec: self.spec,
            })
        };
        let attended = match &sight.view {
            View::States(seen) => of(query, self.keys(seen.states.clone()), &seen.bias),
            View::Cached(glances) => {
                let mut next = 0;
                let [rows, width] = query.dims();
                let mut parts = Vec::with_capacity(2 * glances.len() + 1);
                let blind = |rows: usize| Tensor::zeros([rows, width], &query.device());
                for glance in glances {
                    if next < glance.rows.start {
                        parts.push(blind(glance.rows.start - next));
                    }
                    let query = query
                        .clone()
                        .narrow(0, glance.rows.start, glance.rows.len());
                    parts.push(of(query, glance.pictures.layer(layer), &glance.bias));
                    next = glance.rows.end;
                }
                if next < rows {
                    parts.push(blind(rows - next));
                }
                Tensor::cat(parts, 0)
            }
        };
        let output = self.output.forward(attended, self.precision);
        match &self.group {
            Some(group) => group.sum(output),
            None => output,
        }
    }
}
