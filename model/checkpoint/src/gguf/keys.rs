//! The keys of a model's metadata, without the name of the architecture that stands before them.

/// Tokens that a text may have.
pub(super) const CONTEXT: &str = "context_length";
/// Width of the residual stream.
pub(super) const WIDTH: &str = "embedding_length";
/// Number of layers.
pub(super) const LAYERS: &str = "block_count";
/// Width of dense feed-forwards, and of experts where these have no key of their own.
pub(super) const D_FF: &str = "feed_forward_length";
/// Ids of the vocabulary.
pub(super) const VOCABULARY: &str = "vocab_size";
/// Query heads.
pub(super) const HEADS: &str = "attention.head_count";
/// Key/value heads.
pub(super) const KV_HEADS: &str = "attention.head_count_kv";
/// Width of a head's queries and keys.
pub(super) const KEY_WIDTH: &str = "attention.key_length";
/// Width of a head's values.
pub(super) const VALUE_WIDTH: &str = "attention.value_length";
/// The same of latent attention, whose own key and value, by the two keys above, are one for all heads: the latent, with the
/// rotated key.
pub(super) const LATENT_KEY_WIDTH: &str = "attention.key_length_mla";
/// Width of a head's values in latent attention.
pub(super) const LATENT_VALUE_WIDTH: &str = "attention.value_length_mla";
/// Width of the latent of keys and values.
pub(super) const RANK: &str = "attention.kv_lora_rank";
/// Width of the latent of queries; 0 where they have none.
pub(super) const QUERY_RANK: &str = "attention.q_lora_rank";
/// Added to the mean square in norms.
pub(super) const EPSILON: &str = "attention.layer_norm_rms_epsilon";
/// Positions that a layer with a window attends to.
pub(super) const WINDOW: &str = "attention.sliding_window";
/// Which layers have a window.
pub(super) const WINDOW_PATTERN: &str = "attention.sliding_window_pattern";
/// Factor of attention's scores.
pub(super) const ATTENTION_SCALE: &str = "attention.scale";
/// Factor of the embeddings.
pub(super) const EMBEDDING_SCALE: &str = "embedding_scale";
/// Factor of what attention and feed-forward add.
pub(super) const RESIDUAL_SCALE: &str = "residual_scale";
/// The logits are divided by it.
pub(super) const LOGIT_SCALE: &str = "logit_scale";
/// Values of a head that are rotated.
pub(super) const ROTARY: &str = "rope.dimension_count";
/// Base of the rotary frequencies.
pub(super) const ROPE_BASE: &str = "rope.freq_base";
/// How the frequencies are scaled: none, linear or yarn.
pub(super) const SCALING: &str = "rope.scaling.type";
/// The factor that frequencies are scaled by.
pub(super) const SCALING_FACTOR: &str = "rope.scaling.factor";
/// The context of the pretraining.
pub(super) const ORIGINAL_CONTEXT: &str = "rope.scaling.original_context_length";
/// A further factor of rotated queries and keys.
pub(super) const ATTENTION_FACTOR: &str = "rope.scaling.attn_factor";
/// 0.1 times the number m by which YaRN's length is that of latent attention's scores.
pub(super) const LOG_MULTIPLIER: &str = "rope.scaling.yarn_log_multiplier";
/// The factor before it.
pub(super) const LOG_MULTIPLIER_UNIT: f64 = 0.1;
/// Frequencies of more rotations than this stay as they are.
pub(super) const BETA_FAST: &str = "rope.scaling.yarn_beta_fast";
/// Frequencies of fewer rotations than this are divided.
pub(super) const BETA_SLOW: &str = "rope.scaling.yarn_beta_slow";
/// Whether the model was trained further with these frequencies; nothing is computed from it.
pub(super) const FINETUNED: &str = "rope.scaling.finetuned";
/// Experts of a layer.
pub(super) const EXPERTS: &str = "expert_count";
/// Experts of a token.
pub(super) const TOP_K: &str = "expert_used_count";
/// Width of an expert.
pub(super) const EXPERT_D_FF: &str = "expert_feed_forward_length";
/// Width of the shared expert.
pub(super) const SHARED_D_FF: &str = "expert_shared_feed_forward_length";
/// Shared experts.
pub(super) const SHARED: &str = "expert_shared_count";
/// Dense layers before those with experts.
pub(super) const DENSE_LAYERS: &str = "leading_dense_block_count";
/// Factor of the weights of a token's experts.
pub(super) const WEIGHT_SCALE: &str = "expert_weights_scale";
/// Whether these weights are divided by their sum.
pub(super) const WEIGHT_NORM: &str = "expert_weights_norm";
/// How logits become scores: 1 softmax, 2 sigmoid.
pub(super) const GATING: &str = "expert_gating_func";
/// Groups of experts.
pub(super) const GROUPS: &str = "expert_group_count";
/// Groups that a token's experts come from.
pub(super) const TOP_GROUPS: &str = "expert_group_used_count";

/// `expert_gating_func` of a sigmoid of each logit.
pub(super) const SIGMOID: usize = 2;

/// The name of the model's architecture; this key and those below belong to no architecture.
pub(super) const ARCHITECTURE: &str = "general.architecture";
/// Of how many files this is one.
pub(super) const SPLITS: &str = "split.count";
/// Firebox's own note of a training with `data.document_mask`.
pub(super) const DOCUMENT_MASK: &str = "firebox.document_mask";
/// Firebox's own note of the four numbers that `rope_freqs.weight` was made of; with these behind it.
pub(super) const LLAMA3: &str = "firebox.llama3_scaling";
