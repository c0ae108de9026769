//! Grouped-query attention.

use burn::module::{Module, Param};
use burn::tensor::Tensor;

use crate::cache::LayerStep;
use crate::config::{ModelConfig, QkNorm};
use crate::layout::Layout;
use crate::norm::RmsNorm;
use crate::parameters::{Axis, Initializer, ParameterSource, ParameterSpec, Role};
use firebox_kernels::{AttentionInput, Precision, attention, attention_in_bf16, linear};

/// Grouped-query attention (arXiv 2305.13245); one key/value head makes it multi-query
/// (arXiv 1911.02150). No biases.
///
/// `softmax(q kᵀ / √head_dim) v`, where position i attends to positions 0 … i, or those of them that a [`Layout`] says.
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
    /// Norm of the queries, before the rotary embedding; see [`QkNorm`].
    pub query_norm: Option<RmsNorm>,
    /// Norm of the keys.
    pub key_norm: Option<RmsNorm>,
    #[module(skip)]
    qk_norm: QkNorm,
    /// Of the projections, and of attention itself without a cache; with one that is f32.
    #[module(skip)]
    pub precision: Precision,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
}

impl Attention {
    /// Takes its parameters from `source`, under `path`.
    ///
    /// # Errors
    ///
    /// When the source does not have a parameter of the required path and shape.
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
        let initializer = Initializer::Normal(config.initializer_range);
        let model = (Axis::Model, d_model);
        let all_heads = (Axis::Heads, heads * head_dim);
        let all_kv_heads = (Axis::KvHeads, kv_heads * head_dim);
        let projection = |name: &str, dimensions| {
            let path = format!("{path}.{name}");
            ParameterSpec::new(path, Role::Attention, dimensions, initializer)
        };
        let qk_norm = |name: &str, heads: (Axis, usize), source: &mut S| {
            let width = match config.qk_norm {
                QkNorm::None => return Ok(None),
                QkNorm::Projection => heads,
                QkNorm::Head => (Axis::HeadDim, head_dim),
            };
            RmsNorm::new(config, width, &format!("{path}.{name}"), source).map(Some)
        };
        Ok(Self {
            query: source.parameter(projection("query", [model, all_heads]))?,
            key: source.parameter(projection("key", [model, all_kv_heads]))?,
            value: source.parameter(projection("value", [model, all_kv_heads]))?,
            output: source.parameter(ParameterSpec {
                initializer: Initializer::Normal(config.residual_initializer_range()),
                ..projection("output", [all_heads, model])
            })?,
            query_norm: qk_norm("query_norm", all_heads, source)?,
            key_norm: qk_norm("key_norm", all_kv_heads, source)?,
            qk_norm: config.qk_norm,
            precision: Precision::F32,
            heads,
            kv_heads,
            head_dim,
        })
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
        } = layout;
        let query = linear(x.clone(), self.query.val(), self.precision);
        let query = self.normed(query, self.heads, &self.query_norm);
        let key = linear(x.clone(), self.key.val(), self.precision);
        let key = self.normed(key, self.kv_heads, &self.key_norm);
        let value = linear(x, self.value.val(), self.precision);

        let attend = match self.precision {
            Precision::F32 => attention,
            Precision::Bf16 => attention_in_bf16,
        };
        let attended = match cache {
            Some(cache) => cache.attend(query, key, value, rotary),
            None => attend(AttentionInput {
                query,
                key,
                value,
                batch: *batch,
                rotary,
                ranges: ranges.as_ref(),
            }),
        };
        linear(attended, self.output.val(), self.precision)
    }

    /// Queries or keys after their norm, if there is one.
    fn normed(&self, x: Tensor<2>, heads: usize, norm: &Option<RmsNorm>) -> Tensor<2> {
        let [tokens, width] = x.dims();
        match norm {
            Some(norm) if self.qk_norm == QkNorm::Projection => norm.forward(x),
            Some(norm) => {
                let by_head = x.reshape([tokens * heads, self.head_dim]);
                norm.forward(by_head).reshape([tokens, width])
            }
            None => x,
        }
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
    );

    const IDENTITY: &[f32] = &[1.0, 0.0, 0.0, 1.0];

    fn attention(config: &ModelConfig, device: &Device, values: &[(&str, &[f32])]) -> Attention {
        let Ok(attention) = Attention::new(config, "it", &mut ByHand { device, values });
        attention
    }

    fn causal(batch: usize, positions: usize, device: &Device) -> Layout {
        Layout::causal(batch, Rotary::new(0, positions, 2, 10_000.0, device))
    }

    fn indifferent_queries_take_the_mean_of_what_they_see(device: Device) {
        let parameters = [("it.value", IDENTITY), ("it.output", IDENTITY)];
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
            ("it.query", first_two),
            ("it.key", first_two),
            ("it.value", third),
            ("it.output", back),
        ];
        let attention = attention(&config, &device, &parameters);
        let x = rows(&[[1.0, 0.0, 0.0], [1.0, 0.0, 1.0]], &device);
        let found = values(attention.forward(x, &causal(1, 2, &device), None));
        // Scores of the second query: cos 1 / √2 and cos 0 / √2, so a weight of 1 / (1 + e^((cos 1 − 1) / √2)).
        let expected = [0.0, 0.0, 0.0, 0.0, 0.0, 0.580_555_7];
        assert_close("weights", &found, &expected, 1e-6).unwrap();
    }

    fn heads_share_keys_and_values(device: Device) {
        // Two query heads on one key/value head; the second asks for the opposite of what the first does.
        let mut config = smallest();
        config.heads = 2;
        let parameters: [(&str, &[f32]); 4] = [
            ("it.query", &[1.0, 0.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0]),
            ("it.key", IDENTITY),
            ("it.value", IDENTITY),
            ("it.output", &[1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0]),
        ];
        let attention = attention(&config, &device, &parameters);
        assert_eq!(attention.key.dims(), [2, 2]);
        // At position 0 both heads see its own value alone.
        let x = rows(&[[2.0, 0.0], [2.0, 1.0]], &device);
        let found = values(attention.forward(x, &causal(1, 2, &device), None));
        assert_close("position 0", &found[..2], &[4.0, 0.0], 1e-6).unwrap();
        // Scores of head one are s and t, those of head two −s and −t: with w the weight of the second value in
        // head one it is 1 − w in head two, and the sum of both is the sum of both values.
        assert_close("position 1", &found[2..], &[4.0, 1.0], 1e-6).unwrap();
    }
}
