//! What an absent field means.

use firebox_model::config::RopeScaling;

/// The values that fields of config.json have where they are absent, per family: those of its configuration class in
/// `transformers` 5.24. Fields that a family does not have are 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Defaults {
    /// `vocab_size`
    pub vocab_size: usize,
    /// `hidden_size`
    pub hidden_size: usize,
    /// `intermediate_size`
    pub intermediate_size: usize,
    /// `moe_intermediate_size`
    pub moe_intermediate_size: usize,
    /// `num_hidden_layers`
    pub num_hidden_layers: usize,
    /// `num_attention_heads`
    pub num_attention_heads: usize,
    /// `num_key_value_heads`; `None` stands for as many as query heads, which is also what null means.
    pub num_key_value_heads: Option<usize>,
    /// `head_dim`; `None` stands for `hidden_size / num_attention_heads`.
    pub head_dim: Option<usize>,
    /// `max_position_embeddings`
    pub max_position_embeddings: usize,
    /// `rms_norm_eps`
    pub rms_norm_eps: f64,
    /// `rope_parameters.rope_theta`
    pub rope_theta: f64,
    /// `rope_parameters`, where neither these nor `rope_scaling` are there.
    pub rope_scaling: Option<RopeScaling>,
    /// `num_experts`, `num_local_experts`, `n_routed_experts`
    pub num_experts: usize,
    /// `num_experts_per_tok`
    pub num_experts_per_tok: usize,
    /// `shared_expert_intermediate_size`
    pub shared_expert_intermediate_size: usize,
    /// `n_shared_experts`
    pub n_shared_experts: usize,
    /// `n_group`
    pub n_group: usize,
    /// `topk_group`
    pub topk_group: usize,
    /// `routed_scaling_factor`
    pub routed_scaling_factor: f64,
    /// `kv_lora_rank`
    pub kv_lora_rank: usize,
    /// `q_lora_rank`; null says that there is none.
    pub q_lora_rank: usize,
    /// `qk_nope_head_dim`
    pub qk_nope_head_dim: usize,
    /// `qk_rope_head_dim`
    pub qk_rope_head_dim: usize,
    /// `v_head_dim`
    pub v_head_dim: usize,
    /// `first_k_dense_replace`
    pub first_k_dense_replace: usize,
    /// `norm_topk_prob`
    pub norm_topk_prob: bool,
    /// `partial_rotary_factor`
    pub partial_rotary_factor: f64,
    /// `router_aux_loss_coef`
    pub router_aux_loss_coef: f64,
    /// `tie_word_embeddings`
    pub tie_word_embeddings: bool,
    /// `attention_bias`, `qkv_bias`
    pub attention_bias: bool,
    /// `no_rope_layer_interval`
    pub no_rope_layer_interval: usize,
    /// `sliding_window`, where it is in use.
    pub sliding_window: Option<usize>,
    /// `max_window_layers`: the first layer with a sliding window, or behind those with one.
    pub max_window_layers: usize,
}

/// Llama's, from which the other families take what they do not change.
pub(super) const DEFAULTS: Defaults = Defaults {
    vocab_size: 32_000,
    hidden_size: 4096,
    intermediate_size: 11_008,
    moe_intermediate_size: 0,
    num_hidden_layers: 32,
    num_attention_heads: 32,
    num_key_value_heads: None,
    head_dim: None,
    max_position_embeddings: 2048,
    rms_norm_eps: 1e-6,
    rope_theta: 10_000.0,
    rope_scaling: None,
    num_experts: 0,
    num_experts_per_tok: 0,
    shared_expert_intermediate_size: 0,
    n_shared_experts: 0,
    n_group: 1,
    topk_group: 1,
    routed_scaling_factor: 1.0,
    kv_lora_rank: 0,
    q_lora_rank: 0,
    qk_nope_head_dim: 0,
    qk_rope_head_dim: 0,
    v_head_dim: 0,
    first_k_dense_replace: 0,
    norm_topk_prob: false,
    partial_rotary_factor: 1.0,
    router_aux_loss_coef: 0.0,
    tie_word_embeddings: false,
    attention_bias: false,
    no_rope_layer_interval: 0,
    sliding_window: None,
    max_window_layers: 0,
};
