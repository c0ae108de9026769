//! A run that starts from a checkpoint: what the checkpoint decides, what may differ from it, and what follows
//! when a dense one becomes a mixture (upcycling, arXiv 2212.05055).

#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use firebox_model::checkpoint::family::FIREBOX;
use firebox_model::checkpoint::{CheckpointConfig, TOKENIZER_FILE, checkpoint_folder, read_config};
use firebox_model::config::{
    BalanceKind, DenseConfig, ExpertsConfig, FeedForwardKind, ModelConfig, RouterConfig,
};
use firebox_model::tokenizer::Tokenizer;
use serde::Serialize;
use toml::Value;

use super::model::{ROUTER, checked, refuse_dense_layers, router};
use super::{Checked, tokenizer, without_effect};
use crate::config::TokenizerConfig;
use crate::config::error::Problem;
use crate::config::raw::{RawDense, RawExperts, RawModel, RawRouter, RawTokenizer};

/// The longest context that a run has without being asked to; checkpoints are often made for more than a
/// training step has memory for.
const LONGEST_DEFAULT_CONTEXT: usize = 2048;

/// Where `train.init` stands in a file.
const KEY: &str = "train.init";

/// The checkpoint that a run starts from.
pub(super) struct Origin {
    folder: PathBuf,
    config: CheckpointConfig,
}

impl Origin {
    /// Reads the `config.json` of the checkpoint that `init` means.
    pub fn open(init: &Path) -> Checked<Self> {
        let unusable = || Problem::new(KEY, "cannot be used");
        let folder = checkpoint_folder(init).map_err(|error| {
            let hint = error.hint().unwrap_or_else(|| {
                "a checkpoint's folder or a run's, such as runs/NAME, seen from the working directory".into()
            });
            unusable().caused_by(error, Some(hint))
        })?;
        let config = read_config(&folder).map_err(|error| {
            let hint = error.hint();
            unusable().caused_by(error, hint)
        })?;
        Ok(Self { folder, config })
    }

    /// The tokenizer that is written, or the checkpoint's own.
    pub fn tokenizer(&self, raw: Option<RawTokenizer>) -> Checked<TokenizerConfig> {
        let (tokenizer, ids, key) = match raw {
            None => {
                let (tokenizer, ids) = self.own_tokenizer()?;
                (tokenizer, ids, KEY)
            }
            Some(raw) => {
                let tokenizer = tokenizer::tokenizer(raw)?;
                let ids = tokenizer::vocabulary(&tokenizer)?;
                let key = match &tokenizer {
                    TokenizerConfig::Bytes => "tokenizer.kind",
                    TokenizerConfig::Bpe { .. } => "tokenizer.vocabulary",
                    TokenizerConfig::File { .. } => "tokenizer.path",
                };
                (tokenizer, ids, key)
            }
        };
        let embeddings = self.config.model.vocabulary;
        if ids <= embeddings {
            return Ok(tokenizer);
        }
        let (rule, hint) = match key {
            KEY => (
                format!(
                    "has a {TOKENIZER_FILE} of {ids} ids and a model of {embeddings} embeddings"
                ),
                "the two are of different models; name another tokenizer under [tokenizer]",
            ),
            _ => (
                format!(
                    "makes {ids} ids, and {} has {embeddings} embeddings",
                    self.name()
                ),
                "leave [tokenizer] out for the checkpoint's own",
            ),
        };
        Err(Problem::new(key, rule).hint(hint))
    }

    fn own_tokenizer(&self) -> Checked<(TokenizerConfig, usize)> {
        let path = self.folder.join(TOKENIZER_FILE);
        if !path.exists() {
            let rule = format!("is missing, and {} has no {TOKENIZER_FILE}", self.name());
            return Err(Problem::new("tokenizer", rule).hint(
                "write [tokenizer], or copy the file that the model was trained with into the folder",
            ));
        }
        let opened =
            Tokenizer::load(&path, self.config.end_of_text.first().copied()).map_err(|error| {
                let hint = error.hint();
                Problem::new(KEY, "has a tokenizer that cannot be used").caused_by(error, hint)
            })?;
        let end_of_text = opened.end_of_text_token();
        Ok((
            TokenizerConfig::File { path, end_of_text },
            opened.vocabulary(),
        ))
    }

    /// The checkpoint's shape, with what the file says of that which may differ.
    pub fn model(&self, raw: RawModel) -> Checked<ModelConfig> {
        let own = &self.config.model;
        let chosen = raw.feed_forward;
        let shape = ModelConfig {
            vocabulary: self.agreed("model.vocabulary", raw.vocabulary, own.vocabulary)?,
            layers: self.agreed("model.layers", raw.layers, own.layers)?,
            d_model: self.agreed("model.d_model", raw.d_model, own.d_model)?,
            heads: self.agreed("model.heads", raw.heads, own.heads)?,
            kv_heads: self.agreed("model.kv_heads", raw.kv_heads, own.kv_heads)?,
            head_dim: self.agreed("model.head_dim", raw.head_dim, own.head_dim)?,
            context: self.context(raw.context)?,
            rope_theta: self.agreed("model.rope_theta", raw.rope_theta, own.rope_theta)?,
            norm_epsilon: self.agreed("model.norm_epsilon", raw.norm_epsilon, own.norm_epsilon)?,
            tied_embeddings: self.agreed(
                "model.tied_embeddings",
                raw.tied_embeddings,
                own.tied_embeddings,
            )?,
            initializer_range: self.agreed(
                "model.initializer_range",
                raw.initializer_range,
                own.initializer_range,
            )?,
            qk_norm: self.agreed("model.qk_norm", raw.qk_norm, own.qk_norm)?,
            feed_forward: chosen.unwrap_or(own.feed_forward),
            ..own.clone()
        };
        let experts = raw.experts.unwrap_or_default();
        refuse_dense_layers(shape.feed_forward, raw.dense.as_ref())?;
        checked(match (own.feed_forward, shape.feed_forward) {
            (FeedForwardKind::Moe, FeedForwardKind::Dense) => {
                let rule = format!("must be \"moe\", as in {}", self.name());
                return Err(Problem::new("model.feed_forward", rule)
                    .hint("only a dense checkpoint can become the other kind"));
            }
            (FeedForwardKind::Moe, FeedForwardKind::Moe) => ModelConfig {
                dense: self.dense_layers(raw.dense)?,
                experts: self.experts(experts)?,
                router: self.router(raw.router)?,
                ..shape
            },
            (FeedForwardKind::Dense, FeedForwardKind::Dense) => ModelConfig {
                experts: self.twin(experts, chosen.is_some())?,
                router: router(raw.router, ROUTER),
                ..shape
            },
            (FeedForwardKind::Dense, FeedForwardKind::Moe) => ModelConfig {
                dense: self.upcycled_dense_layers(raw.dense)?,
                experts: self.upcycled_experts(experts)?,
                router: upcycled_router(raw.router)?,
                ..shape
            },
        })
    }

    fn context(&self, written: Option<usize>) -> Checked<usize> {
        let own = self.config.model.context;
        match written {
            Some(context) if context > own => {
                let rule = format!("must be at most {own}, the context of {}", self.name());
                Err(Problem::new("model.context", rule))
            }
            Some(context) => Ok(context),
            None => Ok(own.min(LONGEST_DEFAULT_CONTEXT)),
        }
    }

    /// A mixture's own experts.
    fn experts(&self, raw: RawExperts) -> Checked<ExpertsConfig> {
        let own = &self.config.model.experts;
        Ok(ExpertsConfig {
            count: self.agreed("model.experts.count", raw.count, own.count)?,
            per_token: self.agreed("model.experts.per_token", raw.per_token, own.per_token)?,
            d_ff: self.agreed("model.experts.d_ff", raw.d_ff, own.d_ff)?,
        })
    }

    /// A mixture's own dense layers.
    fn dense_layers(&self, raw: Option<RawDense>) -> Checked<Option<DenseConfig>> {
        match (raw, &self.config.model.dense) {
            (None, own) => Ok(own.clone()),
            (Some(_), None) => {
                let rule = format!(
                    "has no place, since {} has a mixture in every layer",
                    self.name()
                );
                Err(Problem::new("model.dense", rule).hint("remove [model.dense]"))
            }
            (Some(raw), Some(own)) => Ok(Some(DenseConfig {
                layers: self.agreed("model.dense.layers", Some(raw.layers), own.layers.clone())?,
                d_ff: self.agreed("model.dense.d_ff", raw.d_ff, own.d_ff)?,
            })),
        }
    }

    /// A mixture's own router, but for the losses, which leave no trace in a checkpoint's weights.
    fn router(&self, raw: RawRouter) -> Checked<RouterConfig> {
        let ModelConfig {
            router: own,
            experts,
            ..
        } = &self.config.model;
        let key = "model.router.normalize";
        let normalize = self.agreed(key, raw.normalize, own.normalize)?;
        // One is `per_token` when balanced, the other 1; the product is to be the same.
        let per_token = experts.per_token as f64;
        let balance = raw.balance.unwrap_or(own.balance);
        let balance_coefficient = match (own.balance, balance) {
            (BalanceKind::Pooled, BalanceKind::PerLayer) => own.balance_coefficient * per_token,
            (BalanceKind::PerLayer, BalanceKind::Pooled) => own.balance_coefficient / per_token,
            _ => own.balance_coefficient,
        };
        // Hugging Face's config.json has no word for it.
        let z_coefficient = match self.config.family == FIREBOX {
            true => own.z_coefficient,
            false => ROUTER.z_coefficient,
        };
        let otherwise = RouterConfig {
            normalize,
            balance,
            balance_coefficient,
            z_coefficient,
            bias_update_rate: own.bias_update_rate,
        };
        Ok(router(raw, otherwise))
    }

    /// The measure of a model that is dense and stays so. As in any dense run, `count` means nothing and the
    /// width is `d_ff × per_token`, which a file that was made for the mixture spells in its own way.
    fn twin(&self, raw: RawExperts, dense_is_written: bool) -> Checked<ExpertsConfig> {
        let own = &self.config.model.experts;
        let differs = |written: Option<usize>, own: usize| written.is_some_and(|w| w != own);
        let mixture = [
            ("model.experts.count", raw.count, own.count),
            ("model.experts.per_token", raw.per_token, own.per_token),
        ];
        let written = mixture
            .into_iter()
            .find(|&(_, written, own)| differs(written, own));
        if let Some((key, ..)) = written.filter(|_| !dense_is_written) {
            let condition = format!("while {} is dense and stays so", self.name());
            return Err(without_effect(key, &condition)
                .hint("set model.feed_forward = \"moe\" to make it a mixture (upcycling)"));
        }
        let width = self.config.model.active_d_ff();
        let per_token = raw.per_token.unwrap_or(own.per_token);
        let experts = ExpertsConfig {
            count: raw.count.unwrap_or(own.count),
            per_token,
            d_ff: raw.d_ff.unwrap_or(width / per_token.max(1)),
        };
        if experts.d_ff.saturating_mul(experts.per_token) == width {
            return Ok(experts);
        }
        let rule = format!(
            "times experts.per_token = {} must be {width}, the width of the feed-forward in {}",
            experts.per_token,
            self.name()
        );
        Err(Problem::new("model.experts.d_ff", rule).value(experts.d_ff))
    }

    /// Each expert is a copy of the one feed-forward; how many, and how many a token visits, is for the file to
    /// say.
    fn upcycled_experts(&self, raw: RawExperts) -> Checked<ExpertsConfig> {
        let needed = |key: &str, value: Option<usize>, hint: &str| {
            value.ok_or_else(|| {
                let rule = format!("is missing, and {} is dense", self.name());
                Problem::new(key, rule).hint(hint)
            })
        };
        let hint = "how many experts its feed-forward becomes, such as 8";
        let count = needed("model.experts.count", raw.count, hint)?;
        let hint = "how many of the experts a token visits, such as 2";
        let per_token = needed("model.experts.per_token", raw.per_token, hint)?;
        Ok(ExpertsConfig {
            count,
            per_token,
            d_ff: self.copied_width("model.experts.d_ff", raw.d_ff)?,
        })
    }

    /// Layers that stay as they are.
    fn upcycled_dense_layers(&self, raw: Option<RawDense>) -> Checked<Option<DenseConfig>> {
        raw.map(|raw| {
            Ok(DenseConfig {
                layers: raw.layers,
                d_ff: self.copied_width("model.dense.d_ff", raw.d_ff)?,
            })
        })
        .transpose()
    }

    fn copied_width(&self, key: &str, written: Option<usize>) -> Checked<usize> {
        let width = self.config.model.active_d_ff();
        match written {
            Some(d_ff) if d_ff != width => {
                let rule = format!(
                    "must be {width}, since it is a copy of the feed-forward in {}",
                    self.name()
                );
                Err(Problem::new(key, rule).hint("leave it out"))
            }
            _ => Ok(width),
        }
    }

    /// The checkpoint's value, unless another one is written.
    fn agreed<T: Serialize>(&self, key: &str, written: Option<T>, own: T) -> Checked<T> {
        let as_toml = |value: &T| Value::try_from(value).expect("numbers, words and lists");
        let shown = as_toml(&own);
        match written {
            Some(written) if !same(&as_toml(&written), &shown) => {
                let rule = format!("must be {shown}, as in {}", self.name());
                Err(Problem::new(key, rule).hint("leave it out: the checkpoint decides"))
            }
            _ => Ok(own),
        }
    }

    fn name(&self) -> String {
        format!("the checkpoint {}", self.folder.display())
    }
}

/// Equal, or equal to the last digits: what was written in JSON may come back by one bit off.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Float(a), Value::Float(b)) => (a - b).abs() <= 1e-12 * b.abs(),
        _ => a == b,
    }
}

fn upcycled_router(raw: RawRouter) -> Checked<RouterConfig> {
    if raw.normalize == Some(false) {
        let rule = "cannot be had where a dense checkpoint becomes a mixture: its experts begin as copies of one \
                    feed-forward, and say together what it says only if their weights add up to 1";
        return Err(
            Problem::new("model.router.normalize", rule).hint("remove it, or set it to true")
        );
    }
    Ok(router(raw, ROUTER))
}
