//! Multi-head latent attention.

use burn::module::{Module, Param};
use burn::tensor::{DType, Tensor};

use crate::cache::LayerStep;
use crate::config::{AttentionBias, LatentConfig, ModelConfig, RopeScaling};
use crate::layout::Layout;
use crate::linear::Linear;
use crate::matrix::Matrix;
use crate::norm::RmsNorm;
use crate::parallel::TensorGroup;
use crate::parameters::{Axis, Initializer, ParameterSource, ParameterSpec, Role};
use crate::rope::yarn_length;
use firebox_kernels::{AttentionInput, AttentionSpec, Precision, attention, linear_transposed};

/// Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1; DeepSeek-V3, arXiv 2412.19437).
///
/// A token has one latent c and one rotated key k, of which head h has the key `[k, K_h c]` and the value `V_h c`; its query
/// is made of another latent, or of the residual stream, and a part of it is rotated as k is.
///
/// Without a cache, the keys and values of every head are computed. A cache keeps `[k, c]` alone: of `qᵀ K_h c = (K_hᵀ q)ᵀ c`
/// and `Σ w V_h c = V_h Σ w c` follows that a query can meet the latents themselves, as one key/value head that all query
/// heads share (section 2.1.2 there).
#[derive(Module, Debug)]
pub struct LatentAttention {
    /// Makes the queries, `[heads · head_dim]`, of each head those that are not rotated first.
    pub query: Queries,
    /// `[d_model, rank + rotary_dim]`: the latent, then the key that all heads share.
    pub latent: Linear,
    /// Norm of the latent.
    pub latent_norm: RmsNorm,
    /// `[heads · (head_dim − rotary_dim + value_dim), rank]`: of each head K, then V.
    pub key_value: Param<Tensor<2>>,
    /// `[heads · value_dim, d_model]`
    pub output: Linear,
    /// Of the projections, and of attention itself without a cache; with one that is f32.
    #[module(skip)]
    pub precision: Precision,
    #[module(skip)]
    config: LatentConfig,
    /// Those that it has; a rank among others has some of the model's.
    heads: usize,
    head_dim: usize,
    rotary_dim: usize,
    #[module(skip)]
    scale: f32,
    /// The ranks that share a layer's heads.
    #[module(skip)]
    group: Option<TensorGroup>,
}

/// How queries are made of the residual stream.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // one per layer
pub enum Queries {
    /// By one product.
    Direct(Linear),
    /// By two, with a norm between them.
    Latent(LatentQueries),
}

/// Queries of a latent.
#[derive(Module, Debug)]
pub struct LatentQueries {
    /// `[d_model, query_rank]`
    pub down: Linear,
    /// Norm of the latent.
    pub norm: RmsNorm,
    /// `[query_rank, heads · head_dim]`
    pub up: Linear,
}

/// Factor of the scores: the usual one or the configured one, and with `mscale_all_dim` the square of the length that YaRN
/// gives.
fn scale(config: &ModelConfig) -> f32 {
    let usual = (config.head_dim as f64).sqrt().recip();
    let scale = config.multipliers.attention.unwrap_or(usual);
    let length = match config.rope_scaling {
        Some(RopeScaling::Yarn {
            factor,
            mscale_all_dim,
            ..
        }) => yarn_length(factor, mscale_all_dim),
        _ => 1.0,
    };
    (scale * length * length) as f32
}

impl LatentAttention {
    /// Takes the parameters of a layer's attention from `source`, under `path`.
    ///
    /// # Errors
    ///
    /// When the source does not have a parameter of the required path and shape.
    pub fn new<S: ParameterSource>(
        config: &ModelConfig,
        latent: LatentConfig,
        path: &str,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        let (head_dim, rotary_dim) = (config.head_dim, config.rotary_dim);
        let model = (Axis::Model, config.d_model);
        let heads = |width: usize| (Axis::Heads, config.heads * width);
        let initializer = Initializer::Normal(config.initializer_range);
        let matrix = |name: &str, dimensions| {
            let path = format!("{path}.{name}");
            ParameterSpec::new(path, Role::Attention, dimensions, initializer)
        };
        let output = ParameterSpec {
            initializer: Initializer::Output(config.residual_initializer_range()),
            ..matrix("output", [heads(latent.value_dim), model])
        };
        let norm = |name: &str, width, source: &mut S| -> Result<RmsNorm, S::Error> {
            let path = format!("{path}.{name}");
            let norm = RmsNorm::new(config, (Axis::Latent, width), &path, source)?;
            Ok(RmsNorm {
                epsilon: LatentConfig::NORM_EPSILON,
                ..norm
            })
        };
        let biased = config.attention_bias == AttentionBias::All;
        let query = match latent.query_rank {
            None => {
                let query = matrix("query", [model, heads(head_dim)]);
                Queries::Direct(Linear::new(query, false, source)?)
            }
            Some(rank) => {
                let rank = (Axis::Latent, rank);
                let up = matrix("query.up", [rank, heads(head_dim)]);
                Queries::Latent(LatentQueries {
                    down: Linear::new(matrix("query.down", [model, rank]), biased, source)?,
                    norm: norm("query.norm", rank.1, source)?,
                    up: Linear::new(up, false, source)?,
                })
            }
        };
        let both = (Axis::Latent, latent.rank + rotary_dim);
        let of_head = head_dim - rotary_dim + latent.value_dim;
        let key_value = matrix("key_value", [heads(of_head), (Axis::Latent, latent.rank)]);
        let widths = query.output().dims();
        Ok(Self {
            heads: widths[1] / head_dim,
            query,
            latent: Linear::new(matrix("latent", [model, both]), biased, source)?,
            latent_norm: norm("latent_norm", latent.rank, source)?,
            key_value: source.parameter(key_value)?,
            output: Linear::new(output, biased, source)?,
            precision: Precision::F32,
            config: latent,
            head_dim,
            rotary_dim,
            scale: scale(config),
            group: None,
        })
    }

    /// Makes this one rank of a tensor-parallel group, with its share of the heads. Each rank has the latents of all tokens.
    pub(crate) fn join(&mut self, group: &TensorGroup) {
        self.group = Some(group.clone());
    }

    /// Values that a cache keeps of a token.
    pub(crate) fn cached(&self) -> usize {
        self.config.cached(self.rotary_dim)
    }

    /// Attends within each of the layout's sequences, and to the positions before them in the cache.
    ///
    /// # Shapes
    ///
    /// - `x`, output: `[batch · new, d_model]`, the layout's tokens in order
    pub fn forward(&self, x: Tensor<2>, layout: &Layout, cache: Option<LayerStep>) -> Tensor<2> {
        let [tokens, _] = x.dims();
        let x = match &self.group {
            Some(group) => group.enter(x),
            None => x,
        };
        let query = self.query.forward(x.clone(), self.precision);
        let query = query.reshape([tokens, self.heads, self.head_dim]);
        let both = self.latent.forward(x, self.precision);
        let latent = both.clone().narrow(1, 0, self.config.rank);
        let key = both.narrow(1, self.config.rank, self.rotary_dim);
        let token = Token {
            query: query.clone().narrow(2, 0, self.plain_dim()),
            rotated_query: self.in_halves(query.narrow(2, self.plain_dim(), self.rotary_dim)),
            latent: self.latent_norm.forward(latent),
            key: self.in_halves(key.unsqueeze_dim(1)),
        };
        let attended = match cache {
            None => self.attend(token, layout),
            Some(cache) => self.attend_cached(token, layout, cache),
        };
        let output = self.output.forward(attended, self.precision);
        match &self.group {
            Some(group) => group.sum(output),
            None => output,
        }
    }

    /// Values of a query or key that are not rotated.
    fn plain_dim(&self) -> usize {
        self.head_dim - self.rotary_dim
    }

    /// Values that are rotated, so that those that turn together are half of them apart: neighbours are where they are
    /// interleaved. What a score adds up does not depend on the order, if queries and keys have the same.
    ///
    /// # Shapes
    ///
    /// - `x`, output: `[tokens, heads, rotary_dim]`
    fn in_halves(&self, x: Tensor<3>) -> Tensor<3> {
        if !self.config.interleaved {
            return x;
        }
        let [tokens, heads, width] = x.dims();
        let pairs = x.reshape([tokens, heads, width / 2, 2]);
        pairs.swap_dims(2, 3).reshape([tokens, heads, width])
    }

    /// With the keys and values of every head. Where queries and keys are not as wide as values, zeros behind the narrower
    /// ones make them so, which add nothing to scores, or outputs that are left out.
    fn attend(&self, token: Token, layout: &Layout) -> Tensor<2> {
        let Token {
            query,
            rotated_query,
            latent,
            key,
        } = token;
        let ([tokens, heads, plain], value_dim) = (query.dims(), self.config.value_dim);
        let made = linear_transposed(latent, self.key_value.val(), self.precision);
        let made = made.reshape([tokens, heads, plain + value_dim]);
        let key = key.expand([tokens, heads, self.rotary_dim]);
        let width = self.head_dim.max(value_dim).next_multiple_of(2);
        let attended = attention(AttentionInput {
            query: side_by_side(vec![rotated_query, query], width),
            key: side_by_side(vec![key, made.clone().narrow(2, 0, plain)], width),
            value: side_by_side(vec![made.narrow(2, plain, value_dim)], width),
            batch: layout.batch,
            rotary: Some(&layout.rotary),
            sinks: None,
            ranges: layout.ranges.as_ref(),
            spec: AttentionSpec {
                scale: self.scale,
                ..AttentionSpec::new(heads, heads, width)
            },
            precision: self.precision,
        });
        let attended = attended.reshape([tokens, heads, width]);
        let attended = attended.narrow(2, 0, value_dim);
        attended.reshape([tokens, heads * value_dim])
    }

    /// With the latents themselves, which a cache keeps.
    fn attend_cached(&self, token: Token, layout: &Layout, cache: LayerStep) -> Tensor<2> {
        let Token {
            query,
            rotated_query,
            latent,
            key,
        } = token;
        let ([tokens, heads, plain], value_dim) = (query.dims(), self.config.value_dim);
        let (rank, width) = (self.config.rank, self.cached());
        let made = self.key_value.val().cast(DType::F32);
        let made = made.reshape([heads, plain + value_dim, rank]);
        // [heads, tokens, plain] × [heads, plain, rank]
        let query = query
            .swap_dims(0, 1)
            .matmul(made.clone().narrow(1, 0, plain));
        let query = side_by_side(vec![rotated_query, query.swap_dims(0, 1)], width);
        let key = side_by_side(vec![key, latent.unsqueeze_dim(1)], width);
        let spec = AttentionSpec {
            scale: self.scale,
            ..AttentionSpec::new(heads, 1, width)
        };
        let attended = cache.attend_shared(query, key, &layout.rotary, spec);
        let attended = attended.reshape([tokens, heads, width]);
        let attended = attended.narrow(2, self.rotary_dim, rank);
        // [heads, tokens, rank] × [heads, rank, value_dim]
        let values = made.narrow(1, plain, value_dim).swap_dims(1, 2);
        let attended = attended.swap_dims(0, 1).matmul(values).swap_dims(0, 1);
        attended.reshape([tokens, heads * value_dim])
    }
}

/// What attention makes of the tokens first.
struct Token {
    /// `[tokens, heads, head_dim − rotary_dim]`
    query: Tensor<3>,
    /// `[tokens, heads, rotary_dim]`, before the rotation
    rotated_query: Tensor<3>,
    /// `[tokens, rank]`, after its norm
    latent: Tensor<2>,
    /// `[tokens, 1, rotary_dim]`, before the rotation
    key: Tensor<3>,
}

/// Parts of each head side by side, and zeros behind them up to `width`.
///
/// # Shapes
///
/// - `parts`: `[tokens, heads, values]` each
/// - output: `[tokens, heads · width]`
fn side_by_side(mut parts: Vec<Tensor<3>>, width: usize) -> Tensor<2> {
    let [tokens, heads, _] = parts[0].dims();
    let missing = width - parts.iter().map(|part| part.dims()[2]).sum::<usize>();
    if missing > 0 {
        let device = parts[0].device();
        parts.push(Tensor::zeros([tokens, heads, missing], &device));
    }
    Tensor::cat(parts, 2).reshape([tokens, heads * width])
}

impl Queries {
    /// The matrix whose columns are those of the heads.
    fn output(&self) -> &Matrix<2> {
        match self {
            Self::Direct(query) => &query.weight,
            Self::Latent(query) => &query.up.weight,
        }
    }

    fn forward(&self, x: Tensor<2>, precision: Precision) -> Tensor<2> {
        match self {
            Self::Direct(query) => query.forward(x, precision),
            Self::Latent(LatentQueries { down, norm, up }) => {
                let latent = norm.forward(down.forward(x, precision));
                up.forward(latent, precision)
            }
        }
    }
}
