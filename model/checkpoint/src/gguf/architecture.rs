//! The architectures of llama.cpp, as data: what each computes, and where it differs from the families of Hugging Face that
//! have its name.
//!
//! llama.cpp decides by the name of the architecture what the keys of a file cannot say. What is here was read in its sources
//! (`src/models/` of October 2026) and compared with what it computes; see tests/FIGURES.md.

use super::names::{BACKBONE, FEED_FORWARDS, LATENT, NORM, POST_NORM};
use crate::families::{
    DEEPSEEK_V3, DOTS1, Family, GLM4_MOE, GPT_OSS, GRANITE_MOE, LLAMA, MISTRAL, MIXTRAL, OLMOE,
    QWEN2, QWEN2_MOE, QWEN3, QWEN3_MOE, SMOLLM3,
};
use crate::layout::{Rule, find};

/// An architecture of llama.cpp.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Architecture {
    /// `general.architecture`.
    pub name: &'static str,
    /// The families that it computes. A file of it is read as the first one whose feed-forwards it has.
    pub families: &'static [Family],
    /// Whether rotary positions turn neighbours, so that the rows of queries and keys lie in another order.
    pub paired: bool,
    /// Whether the weights of a token's experts are divided by their sum; `None` where a key says so.
    pub normalizes: Option<bool>,
    /// Whether attention is latent; its latents have the norms' epsilon, and neighbours turn together.
    pub latent: bool,
    /// Whether some layers attend to a window: every other one from the first one on, unless a key says which.
    pub windows: bool,
    /// Whether attention's output may have a bias.
    pub output_bias: bool,
    /// Whether there are fewer key/value heads than query heads.
    pub groups: bool,
    /// Whether the heads together may have another width than the residual stream.
    pub wide: bool,
    /// Whether the first layers may be dense in a mixture.
    pub dense_layers: bool,
    /// Whether the rotary frequencies may have divisors of their own, as Llama 3's have.
    pub factors: bool,
    /// Whether the head may be tied to the embedding; otherwise the embedding is written twice.
    pub tied: bool,
    /// Whether the width of the experts is a key of its own, and not that of a dense feed-forward.
    pub expert_width: bool,
    /// Where each parameter lies, in groups that architectures share.
    pub rules: &'static [&'static [Rule]],
}

const USUAL: &[&[Rule]] = &[BACKBONE, NORM, FEED_FORWARDS];

const LLAMA_CPP: Architecture = Architecture {
    name: "llama",
    families: &[MIXTRAL, LLAMA, MISTRAL],
    paired: true,
    normalizes: Some(true),
    latent: false,
    windows: false,
    output_bias: true,
    groups: true,
    wide: true,
    dense_layers: false,
    factors: true,
    tied: true,
    expert_width: false,
    rules: USUAL,
};

const QWEN2_CPP: Architecture = Architecture {
    name: "qwen2",
    families: &[QWEN2],
    paired: false,
    output_bias: false,
    wide: false,
    factors: false,
    ..LLAMA_CPP
};

const QWEN3_CPP: Architecture = Architecture {
    name: "qwen3",
    families: &[QWEN3],
    wide: true,
    ..QWEN2_CPP
};

const QWEN3_MOE_CPP: Architecture = Architecture {
    name: "qwen3moe",
    families: &[QWEN3_MOE],
    expert_width: true,
    ..QWEN3_CPP
};

const QWEN2_MOE_CPP: Architecture = Architecture {
    name: "qwen2moe",
    families: &[QWEN2_MOE],
    normalizes: Some(false),
    wide: false,
    tied: false,
    ..QWEN3_MOE_CPP
};

const OLMOE_CPP: Architecture = Architecture {
    name: "olmoe",
    families: &[OLMOE],
    normalizes: Some(false),
    groups: false,
    wide: false,
    tied: false,
    ..QWEN3_CPP
};

const SMOLLM3_CPP: Architecture = Architecture {
    name: "smollm3",
    families: &[SMOLLM3],
    output_bias: false,
    factors: false,
    ..LLAMA_CPP
};

const GRANITE_MOE_CPP: Architecture = Architecture {
    name: "granitemoe",
    families: &[GRANITE_MOE],
    ..LLAMA_CPP
};

const DOTS1_CPP: Architecture = Architecture {
    name: "dots1",
    families: &[DOTS1],
    normalizes: None,
    groups: false,
    dense_layers: true,
    tied: false,
    ..QWEN3_MOE_CPP
};

const GLM4_MOE_CPP: Architecture = Architecture {
    name: "glm4moe",
    families: &[GLM4_MOE],
    groups: true,
    tied: true,
    rules: &[BACKBONE, POST_NORM, FEED_FORWARDS],
    ..DOTS1_CPP
};

const DEEPSEEK2_CPP: Architecture = Architecture {
    name: "deepseek2",
    families: &[DEEPSEEK_V3],
    latent: true,
    tied: true,
    rules: &[BACKBONE, LATENT, NORM, FEED_FORWARDS],
    ..DOTS1_CPP
};

const GPT_OSS_CPP: Architecture = Architecture {
    name: "gpt-oss",
    families: &[GPT_OSS],
    windows: true,
    output_bias: true,
    tied: false,
    rules: &[BACKBONE, POST_NORM, FEED_FORWARDS],
    ..QWEN3_MOE_CPP
};

impl Architecture {
    /// All that Firebox reads and writes.
    pub const ALL: [Self; 12] = [
        LLAMA_CPP,
        QWEN2_CPP,
        QWEN3_CPP,
        QWEN3_MOE_CPP,
        QWEN2_MOE_CPP,
        OLMOE_CPP,
        SMOLLM3_CPP,
        GRANITE_MOE_CPP,
        DOTS1_CPP,
        GLM4_MOE_CPP,
        DEEPSEEK2_CPP,
        GPT_OSS_CPP,
    ];

    /// The one that computes the models of a family.
    pub fn of(family: &Family) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|architecture| architecture.families.contains(family))
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        let mut all = Self::ALL.into_iter();
        all.find(|architecture| architecture.name == name)
    }

    /// The rule for a parameter's path, and its layer where it has one; `None` when there is no such parameter.
    pub fn rule(&self, path: &str) -> Option<(Rule, Option<usize>)> {
        find(self.rules, path)
    }
}
