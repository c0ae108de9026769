//! Causal attention with shared key/value heads.

use burn::module::{Module, Param};
use burn::tensor::activation::softmax;
use burn::tensor::{Bool, Tensor};

use crate::cache::LayerCache;
use crate::config::{ModelConfig, QkNorm};
use crate::norm::RmsNorm;
use crate::parameters::{Initial, ParameterSource};
use crate::rotary::Rotary;

/// Grouped-query attention (arXiv 2305.13245); one key/value head makes it multi-query
/// (arXiv 1911.02150). No biases.
///
/// `softmax(q kᵀ / √head_dim) v`, where position i sees positions 0 … i.
#[derive(Module, Debug)]
pub struct Attention {
    /// `[d_model, heads · head_dim]`
    pub query: Param<Tensor<2>>,
    /// `[d_model, kv_heads · head_dim]`
    pub key: Param<Tensor<2>>,
    /// `[d_model, kv_heads · head_dim]`
    pub value: Param<Tensor<2>>,
    /// `[heads · head_dim, d_model]`
    pub output: Param<Tensor<2>>,
    /// Of queries, before the rotary positions; over what, [`QkNorm`] tells.
    pub query_norm: Option<RmsNorm>,
    /// The same of keys.
    pub key_norm: Option<RmsNorm>,
    #[module(skip)]
    qk_norm: QkNorm,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Attention {
    /// Takes its parameters from `source`, under `path`.
    ///
    /// # Errors
    ///
    /// Those of the source.
    pub fn new<S: ParameterSource>(
        config: &ModelConfig,
        path: &str,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        let (d_model, heads, kv_heads, head_dim) = (
            config.d_model,
            config.heads,
            config.kv_heads,
            config.head_dim,
        );
        let initial = Initial::Normal(config.initializer_range);
        let qk_norm = |name: &str, heads: usize, source: &mut S| {
            let width = match config.qk_norm {
                QkNorm::None => return Ok(None),
                QkNorm::Projection => heads * head_dim,
                QkNorm::Head => head_dim,
            };
            RmsNorm::new(config, width, &format!("{path}.{name}"), source).map(Some)
        };
        Ok(Self {
            query: source.parameter(
                &format!("{path}.query"),
                [d_model, heads * head_dim],
                initial,
            )?,
            key: source.parameter(
                &format!("{path}.key"),
                [d_model, kv_heads * head_dim],
                initial,
            )?,
            value: source.parameter(
                &format!("{path}.value"),
                [d_model, kv_heads * head_dim],
                initial,
            )?,
            output: source.parameter(
                &format!("{path}.output"),
                [heads * head_dim, d_model],
                Initial::Normal(config.residual_initializer_range()),
            )?,
            query_norm: qk_norm("query_norm", heads, source)?,
            key_norm: qk_norm("key_norm", kv_heads, source)?,
            qk_norm: config.qk_norm,
            heads,
            kv_heads,
            head_dim,
        })
    }

    /// Attends within each of `batch` sequences.
    ///
    /// # Shapes
    ///
    /// - `x`, output: `[batch · new, d_model]`, the new positions of a sequence side by side
    /// - `mask`: `[batch or 1, 1, new, all]`, true where a new position must not see; `None` hides nothing
    pub fn forward(
        &self,
        x: Tensor<2>,
        batch: usize,
        rotary: &Rotary,
        mask: Option<&Tensor<4, Bool>>,
        cache: Option<&mut LayerCache>,
    ) -> Tensor<2> {
        let [tokens, _] = x.dims();
        let new = tokens / batch;
        let Self {
            heads,
            kv_heads,
            head_dim,
            ..
        } = *self;
        let group = heads / kv_heads;
        let split =
            |x: Tensor<2>, heads: usize| x.reshape([batch, new, heads, head_dim]).swap_dims(1, 2);
        let normed = |x: Tensor<2>, heads: usize, norm: &Option<RmsNorm>| match norm {
            Some(norm) if self.qk_norm == QkNorm::Projection => split(norm.forward(x), heads),
            Some(norm) => norm.forward(split(x, heads)),
            None => split(x, heads),
        };

        let query = normed(x.clone().matmul(self.query.val()), heads, &self.query_norm);
        let key = normed(x.clone().matmul(self.key.val()), kv_heads, &self.key_norm);
        let value = split(x.matmul(self.value.val()), kv_heads);
        let query = rotary.apply(query).mul_scalar((head_dim as f64).powf(-0.5));
        let key = rotary.apply(key);
        let (key, value) = match cache {
            Some(cache) => cache.append(key, value),
            None => (key, value),
        };
        let [_, _, all, _] = key.dims();

        // The query heads that share a key/value head stand under each other, so that the product reads
        // each key once and nothing is repeated.
        let query = query.reshape([batch, kv_heads, group * new, head_dim]);
        let mut scores = query
            .matmul(key.swap_dims(2, 3))
            .reshape([batch, heads, new, all]);
        if let Some(mask) = mask {
            let mask = mask.clone().expand([batch, heads, new, all]);
            scores = scores.mask_fill(mask, f32::NEG_INFINITY);
        }
        let attended = softmax(scores, 3)
            .reshape([batch, kv_heads, group * new, all])
            .matmul(value);
        let attended = attended
            .reshape([batch, heads, new, head_dim])
            .swap_dims(1, 2);
        attended
            .reshape([tokens, heads * head_dim])
            .matmul(self.output.val())
    }
}
