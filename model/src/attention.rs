//! Attention to the text: grouped-query attention, or latent attention.

mod latent;

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::cache::LayerStep;
use crate::config::{AttentionBias, AttentionKind, ModelConfig, QkNorm};
use crate::layout::Layout;
use crate::linear::Linear;
use crate::norm::RmsNorm;
use crate::parallel::{Shard, TensorGroup};
use crate::parameters::{Axis, Initializer, ParameterSource, ParameterSpec, Role};
use firebox_kernels::{AttentionInput, AttentionSpec, Precision, attention};

pub use latent::{LatentAttention, LatentQueries, Queries};

/// The attention of a layer to the text, as configured.
#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant)] // one per layer
pub enum SelfAttention {
    /// Projections of the residual stream.
    Grouped(Attention),
    /// Keys and values of a latent.
    Latent(LatentAttention),
}

impl SelfAttention {
    /// Takes the parameters of a layer's attention from `source`, under `path`.
    ///
    /// # Errors
    ///
    /// When the source does not have a parameter of the required path and shape.
    pub fn new<S: ParameterSource>(
        config: &ModelConfig,
        kind: AttentionKind,
        path: &str,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        Ok(match config.latent {
            None => Self::Grouped(Attention::new(config, kind, path, source)?),
            Some(latent) => Self::Latent(LatentAttention::new(config, latent, path, source)?),
        })
    }

    /// See [`Attention::forward`].
    pub fn forward(&self, x: Tensor<2>, layout: &Layout, cache: Option<LayerStep>) -> Tensor<2> {
        match self {
            Self::Grouped(attention) => attention.forward(x, layout, cache),
            Self::Latent(attention) => attention.forward(x, layout, cache),
        }
    }

    /// The projection of what was attended to.
    pub fn output(&self) -> &Linear {
        match self {
            Self::Grouped(attention) => &attention.output,
            Self::Latent(attention) => &attention.output,
        }
    }

    /// The same, to be changed.
    pub fn output_mut(&mut self) -> &mut Linear {
        match self {
            Self::Grouped(attention) => &mut attention.output,
            Self::Latent(attention) => &mut attention.output,
        }
    }

    /// Computes the products at this precision from now on.
    pub fn set_precision(&mut self, precision: Precision) {
        match self {
            Self::Grouped(attention) => attention.precision = precision,
            Self::Latent(attention) => attention.precision = precision,
        }
    }

    /// What a cache keeps of a token in a layer: heads and their width, and whether keys serve as values too.
    pub(crate) fn cached(&self) -> ([usize; 2], bool) {
        match self {
            Self::Grouped(attention) => ([attention.kv_heads, attention.head_dim], false),
            Self::Latent(attention) => ([1, attention.cached()], true),
        }
    }

    /// Makes this one rank of a tensor-parallel group, with its share of the heads.
    pub(crate) fn join(&mut self, group: &TensorGroup, shard: &Shard, config: &ModelConfig) {
        match self {
            Self::Grouped(attention) => attention.join(group, shard, config),
            Self::Latent(attention) => attention.join(group),
        }
    }
}

/// Grouped-query attention (arXiv 2305.13245); one key/value head makes it multi-query
/// (arXiv 1911.02150).
///
/// `softmax(q kᵀ / √head_dim) v`, or with another factor of the scores ([`Multipliers`](crate::config::Multipliers)), where position i attends to positions 0 … i, or those of them that a [`Layout`] says and
/// that lie in the layer's window.
#[derive(Module, Debug)]
pub struct Attention {
    /// `[d_model, heads · head_dim]`
    pub query: Linear,
    /// `[d_model, kv_heads · head_dim]`
    pub key: Linear,
    /// `[d_model, kv_heads · head_dim]`
    pub value: Linear,
    /// `[heads · head_dim, d_model]`
    pub output: Linear,
    /// Norm of the queries, before the rotary embedding; see [`QkNorm`].
    pub query_norm: Option<RmsNorm>,
    /// Norm of the keys.
    pub key_norm: Option<RmsNorm>,
    /// `[heads]`: a score of each query head that takes part in its softmax without a key or a value.
    pub sinks: Option<Param<Tensor<1>>>,
    #[module(skip)]
    qk_norm: QkNorm,
    #[module(skip)]
    kind: AttentionKind,
    /// Factor of the scores; `None` for the usual one.
    #[module(skip)]
    scale: Option<f32>,
    /// Of the projections, and of attention itself without a cache; with one that is f32.
    #[module(skip)]
    pub precision: Precision,
    /// Those that it has; a rank among others has some of the model's.
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    #[module(skip)]
    ranks: Option<Ranks>,
}

/// What attention needs to know of the other ranks that share a layer's heads.
#[derive(Debug, Clone)]
struct Ranks {
    group: TensorGroup,
    /// Query and key/value heads of the whole layer.
    heads: [usize; 2],
    /// 1 for each value of a key/value head that this rank counts, 0 for copies of those that another place counts.
    counted: Vec<f32>,
}

impl Attention {
    /// Takes the parameters of a layer's attention from `source`, under `path`.
    ///
    /// # Errors
    ///
    /// When the source does not have a parameter of the required path and shape.
    pub fn new<S: ParameterSource>(
        config: &ModelConfig,
        kind: AttentionKind,
        path: &str,
        source: &mut S,
    ) -> Result<Self, S::Error> {
        let (d_model, heads, kv_heads, head_dim) = (
            config.d_model,
            config.heads,
            config.kv_heads,
            config.head_dim,
        );
        let initializer = Initializer::Normal(config.initializer_range);
        let model = (Axis::Model, d_model);
        let all_heads = (Axis::Heads, heads * head_dim);
        let all_kv_heads = (Axis::KvHeads, kv_heads * head_dim);
        let projection = |name: &str, dimensions| {
            let path = format!("{path}.{name}");
            ParameterSpec::new(path, Role::Attention, dimensions, initializer)
        };
        let output = ParameterSpec {
            initializer: Initializer::Output(config.residual_initializer_range()),
            ..projection("output", [all_heads, model])
        };
        let sinks = ParameterSpec::new(
            format!("{path}.sinks"),
            Role::Sinks,
            [(Axis::QueryHeads, heads)],
            Initializer::Zeros,
        );
        let qkv_bias = config.attention_bias != AttentionBias::None;
        let output_bias = config.attention_bias == AttentionBias::All;
        let qk_norm = |name: &str, heads: (Axis, usize), source: &mut S| {
            let width = match config.qk_norm {
                QkNorm::None => return Ok(None),
                QkNorm::Projection => heads,
                QkNorm::Head => (Axis::HeadDim, head_dim),
            };
            RmsNorm::new(config, width, &format!("{path}.{name}"), source).map(Some)
        };
        let query = Linear::new(projection("query", [model, all_heads]), qkv_bias, source)?;
        let key = Linear::new(projection("key", [model, all_kv_heads]), qkv_bias, source)?;
        let heads_of = |projection: &Linear| projection.weight.dims()[1] / head_dim;
        Ok(Self {
            heads: heads_of(&query),
            kv_heads: heads_of(&key),
            query,
            key,
            value: Linear::new(projection("value", [model, all_kv_heads]), qkv_bias, source)?,
            output: Linear::new(output, output_bias, source)?,
            query_norm: qk_norm("query_norm", all_heads, source)?,
            key_norm: qk_norm("key_norm", all_kv_heads, source)?,
            sinks: match config.sinks {
                true => Some(source.parameter(sinks)?),
                false => None,
            },
            qk_norm: config.qk_norm,
            kind,
            scale: config.multipliers.attention.map(|scale| scale as f32),
            precision: Precision::F32,
            head_dim,
            ranks: None,
        })
    }

    /// Makes this one rank of a tensor-parallel group, with its share of the heads.
    pub(crate) fn join(&mut self, group: &TensorGroup, shard: &Shard, config: &ModelConfig) {
        let counted = shard.counted_kv_heads().into_iter();
        let counted = counted.map(|counted| f32::from(u8::from(counted)));
        self.ranks = Some(Ranks {
            group: group.clone(),
            heads: [config.heads, config.kv_heads],
            counted: counted.flat_map(|flag| vec![flag; self.head_dim]).collect(),
        });
    }

    /// Attends within each of the layout's sequences, and to the positions before them in the cache.
    ///
    /// # Shapes
    ///
    /// - `x`, output: `[batch · new, d_model]`, the layout's tokens in order
    pub fn forward(&self, x: Tensor<2>, layout: &Layout, cache: Option<LayerStep>) -> Tensor<2> {
        let Layout {
            batch,
            rotary,
            ranges,
            ..
        } = layout;
        let x = match &self.ranks {
            Some(ranks) => ranks.group.enter(x),
            None => x,
        };
        let query = self.query.forward(x.clone(), self.precision);
        let key = self.key.forward(x.clone(), self.precision);
        let [query, key] = self.normed(query, key);
        let value = self.value.forward(x, self.precision);

        let usual = AttentionSpec::new(self.heads, self.kv_heads, self.head_dim);
        let spec = AttentionSpec {
            window: self.kind.window(),
            scale: self.scale.unwrap_or(usual.scale),
            ..usual
        };
        let rotary = (self.kind != AttentionKind::Nope).then_some(rotary);
        let sinks = self.sinks.as_ref().map(|sinks| sinks.val());
        let attended = match cache {
            Some(cache) => cache.attend([query, key, value], rotary, sinks, spec),
            None => attention(AttentionInput {
                query,
                key,
                value,
                batch: *batch,
                rotary,
                sinks,
                ranges: ranges.as_ref(),
                spec,
                precision: self.precision,
            }),
        };
        let output = self.output.forward(attended, self.precision);
        match &self.ranks {
            Some(ranks) => ranks.group.sum(output),
            None => output,
        }
    }

    /// Queries and keys after their norms, if there are any.
    fn normed(&self, query: Tensor<2>, key: Tensor<2>) -> [Tensor<2>; 2] {
        let (Some(query_norm), Some(key_norm)) = (&self.query_norm, &self.key_norm) else {
            return [query, key];
        };
        match (self.qk_norm, &self.ranks) {
            (QkNorm::Projection, Some(ranks)) if ranks.group.size() > 1 => {
                let squares = ranks.mean_squares(&query, &key, self.head_dim);
                let [of_query, of_key] = squares;
                [
                    query_norm.forward_given(query, of_query),
                    key_norm.forward_given(key, of_key),
                ]
            }
            (QkNorm::Projection, _) => [query_norm.forward(query), key_norm.forward(key)],
            _ => [
                self.normed_by_head(query, self.heads, query_norm),
                self.normed_by_head(key, self.kv_heads, key_norm),
            ],
        }
    }

    fn normed_by_head(&self, x: Tensor<2>, heads: usize, norm: &RmsNorm) -> Tensor<2> {
        let [tokens, width] = x.dims();
        let by_head = x.reshape([tokens * heads, self.head_dim]);
        norm.forward(by_head).reshape([tokens, width])
    }
}

impl Ranks {
    /// The mean squares of all query heads and of all key/value heads of the layer, `[tokens, 1]` each.
    fn mean_squares(&self, query: &Tensor<2>, key: &Tensor<2>, head_dim: usize) -> [Tensor<2>; 2] {
        let counted = Tensor::<1>::from_floats(self.counted.as_slice(), &key.device());
        let squares = [
            query.clone().square(),
            key.clone().square() * counted.unsqueeze(),
        ];
        let sums = squares.map(|squares| squares.sum_dim(1)).to_vec();
        // Each rank norms its own heads with them.
        let sums = self.group.enter(self.group.sum(Tensor::cat(sums, 1)));
        let [heads, kv_heads] = self.heads;
        [(0, heads), (1, kv_heads)].map(|(place, heads)| {
            let sum = sums.clone().narrow(1, place, 1);
            sum.div_scalar((heads * head_dim) as f64)
        })
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use firebox_kernels::KeyRanges;
    use firebox_kernels::rope::Rotary;

    use super::*;
    use crate::testing::{ByHand, rows, smallest};
    use firebox_runtime::on_every_device;
    use firebox_runtime::testing::{assert_close, values};

    on_every_device!(
        indifferent_queries_take_the_mean_of_what_they_see,
        neighbours_are_one_radian_apart,
        heads_share_keys_and_values,
        a_window_and_a_sink_by_hand,
        without_positions_order_does_not_matter,
    );

    const IDENTITY: &[f32] = &[1.0, 0.0, 0.0, 1.0];

    fn attention(config: &ModelConfig, device: &Device, values: &[(&str, &[f32])]) -> Attention {
        let kind = config.layers[0].attention;
        let Ok(attention) = Attention::new(config, kind, "it", &mut ByHand { device, values });
        attention
    }

    fn causal(batch: usize, positions: usize, device: &Device) -> Layout {
        Layout::causal(batch, Rotary::new(0, positions, 2, 10_000.0, device))
    }

    fn indifferent_queries_take_the_mean_of_what_they_see(device: Device) {
        let parameters = [
            ("it.value.weight", IDENTITY),
            ("it.output.weight", IDENTITY),
        ];
        let attention = attention(&smallest(), &device, &parameters);
        // Two sequences of three positions.
        let x = || {
            let first = [[2.0, 0.0], [0.0, 4.0], [4.0, 8.0]];
            let second = [[1.0, 1.0], [5.0, -1.0], [0.0, 3.0]];
            rows(&[first, second].concat(), &device)
        };
        let mut layout = causal(2, 3, &device);
        let found = values(attention.forward(x(), &layout, None));
        let expected = [
            2.0, 0.0, 1.0, 2.0, 2.0, 4.0, //
            1.0, 1.0, 3.0, 0.0, 2.0, 1.0,
        ];
        assert_close("causal", &found, &expected, 1e-6).unwrap();
        layout.ranges = Some(KeyRanges::new(&[0, 1, 2, 0, 1, 2], 3, &device));
        let found = values(attention.forward(x(), &layout, None));
        assert_close("each itself", &found, &values(x()), 1e-6).unwrap();
    }

    fn neighbours_are_one_radian_apart(device: Device) {
        // Queries and keys are the first two numbers, values the third.
        let mut config = smallest();
        config.d_model = 3;
        let first_two: &[f32] = &[1.0, 0.0, 0.0, 1.0, 0.0, 0.0];
        let third: &[f32] = &[0.0, 0.0, 0.0, 0.0, 1.0, 0.0];
        let back: &[f32] = &[0.0, 0.0, 1.0, 0.0, 0.0, 0.0];
        let parameters = [
            ("it.query.weight", first_two),
            ("it.key.weight", first_two),
            ("it.value.weight", third),
            ("it.output.weight", back),
        ];
        let attention = attention(&config, &device, &parameters);
        let x = rows(&[[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]], &device);
        let found = values(attention.forward(x, &causal(1, 2, &device), None));
        // Scores of the second query: cos 1 / √2 and cos 0 / √2, so a weight of 1 / (1 + e^((cos 1 − 1) / √2)).
        let expected = [0.0, 0.0, 0.0, 0.0, 0.0, 0.580_555_7];
        assert_close("weights", &found, &expected, 1e-6).unwrap();
    }

    fn a_window_and_a_sink_by_hand(device: Device) {
        let mut config = smallest();
        config.layers[0].attention = AttentionKind::Window(2);
        config.sinks = true;
        let three = 3f32.ln();
        let parameters = [
            ("it.value.weight", IDENTITY),
            ("it.output.weight", IDENTITY),
            ("it.sinks", &[three]),
        ];
        let attention = attention(&config, &device, &parameters);
        let x = rows(&[[4.0, 0.0], [0.0, 5.0], [10.0, 5.0]], &device);
        let found = values(attention.forward(x, &causal(1, 3, &device), None));
        // All scores are 0, so that the weights are 1 / (3 + 1), then 1 / (3 + 2) for each of two.
        let expected = [1.0, 0.0, 0.8, 1.0, 2.0, 2.0];
        assert_close("window", &found, &expected, 1e-6).unwrap();
    }

    fn without_positions_order_does_not_matter(device: Device) {
        let parameters = [
            ("it.query.weight", IDENTITY),
            ("it.key.weight", IDENTITY),
            ("it.value.weight", IDENTITY),
            ("it.output.weight", IDENTITY),
        ];
        let last = |kind: AttentionKind, x: &[[f32; 2]; 3]| {
            let mut config = smallest();
            config.layers[0].attention = kind;
            let attention = attention(&config, &device, &parameters);
            let found = attention.forward(rows(x, &device), &causal(1, 3, &device), None);
            values(found)[4..].to_vec()
        };
        let (one, other) = (
            [[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]],
            [[0.0, 2.0], [1.0, 0.0], [1.0, 1.0]],
        );
        let nope = last(AttentionKind::Nope, &one);
        let exchanged = last(AttentionKind::Nope, &other);
        assert_close("exchanged", &nope, &exchanged, 1e-6).unwrap();
        let rotary = last(AttentionKind::Full, &one);
        assert_close("positions", &rotary, &nope, 1e-2).unwrap_err();
    }

    fn heads_share_keys_and_values(device: Device) {
        // Two query heads on one key/value head; the second asks for the opposite of what the first does.
        let mut config = smallest();
        config.heads = 2;
        let parameters: [(&str, &[f32]); 4] = [
            (
                "it.query.weight",
                &[1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0],
            ),
            ("it.key.weight", IDENTITY),
            ("it.value.weight", IDENTITY),
            (
                "it.output.weight",
                &[1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0],
            ),
        ];
        let attention = attention(&config, &device, &parameters);
        assert_eq!(attention.key.weight.dims(), [2, 2]);
        // At position 0 both heads see its own value alone.
        let x = rows(&[[2.0, 0.0], [2.0, 1.0]], &device);
        let found = values(attention.forward(x, &causal(1, 2, &device), None));
        assert_close("position 0", &found[..2], &[4.0, 0.0], 1e-6).unwrap();
        // Scores of head one are s and t, those of head two −s and −t: with w the weight of the second value in
        // head one it is 1 − w in head two, and the sum of both is the sum of both values.
        assert_close("position 1", &found[2..], &[4.0, 1.0], 1e-6).unwrap();
    }
}
