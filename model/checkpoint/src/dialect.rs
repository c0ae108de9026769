//! Whose names the tensors of a checkpoint have.

use super::families::{EMBEDDING, Family, HEAD, ROUTER_BIAS};
use super::gguf::{Architecture, FIXED_NAMES};
use super::layout::Rule;

/// Whose names the tensors of a checkpoint have.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Dialect {
    /// Those of Hugging Face, which each family has its own of.
    HuggingFace,
    /// Those of llama.cpp, for this architecture.
    Gguf(Architecture),
}

impl Dialect {
    /// The rule for a parameter's path in a checkpoint of a family, and its layer where it has one; `None` when there is no such
    /// parameter.
    pub fn rule(&self, family: &Family, path: &str) -> Option<(Rule, Option<usize>)> {
        match self {
            Self::HuggingFace => family.rule(path),
            Self::Gguf(architecture) => architecture.rule(path),
        }
    }

    /// Name of the embedding, `[vocab_size, d_model]`.
    pub fn embedding(&self) -> &'static str {
        self.fixed()[0]
    }

    /// Name of the output head, `[vocab_size, d_model]`.
    pub fn head(&self) -> &'static str {
        self.fixed()[1]
    }

    /// Name of the selection bias of a layer's router, `[experts]`.
    pub fn router_bias(&self) -> &'static str {
        self.fixed()[2]
    }

    fn fixed(&self) -> [&'static str; 3] {
        match self {
            Self::HuggingFace => [EMBEDDING, HEAD, ROUTER_BIAS],
            Self::Gguf(_) => FIXED_NAMES,
        }
    }
}
