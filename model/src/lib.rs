//! The Firebox network: a decoder-only mixture-of-experts transformer, written once against Burn's
//! backend-independent tensors.
//!
//! Start at [`language_model`]; the router and its experts are in [`moe`]. [`accounting`] computes the cost of a
//! configuration without allocating the model.
//!
//! ```
//! use firebox_model::config::{
//!     BalanceKind, ExpertsConfig, FeedForwardKind, ModelConfig, QkNorm, RouterConfig, Scores,
//! };
//! use firebox_model::language_model::{LanguageModel, token_tensor};
//! use firebox_model::moe::balance::{TokensPerExpert, per_layer};
//! use firebox_runtime::device::{default_name, select};
//!
//! let config = ModelConfig {
//!     vocab_size: 257,
//!     layers: 2,
//!     d_model: 32,
//!     heads: 4,
//!     kv_heads: 1,
//!     head_dim: 8,
//!     context_length: 64,
//!     rope_theta: 10_000.0,
//!     norm_epsilon: 1e-5,
//!     tied_embeddings: false,
//!     initializer_range: 0.02,
//!     qk_norm: QkNorm::None,
//!     feed_forward: FeedForwardKind::Moe,
//!     dense: None,
//!     experts: ExpertsConfig { count: 8, top_k: 2, d_ff: 48, shared_d_ff: 0 },
//!     router: RouterConfig {
//!         scores: Scores::Softmax,
//!         normalize: true,
//!         scaling: 1.0,
//!         groups: 1,
//!         top_groups: 1,
//!         balance: BalanceKind::PerLayer,
//!         balance_coefficient: 0.01,
//!         z_coefficient: 0.001,
//!         bias_update_rate: 0.0,
//!     },
//! };
//! config.validate()?;
//!
//! let device = select(default_name())?;
//! let model = LanguageModel::random(&config, 42, &device);
//! let text: Vec<u32> = "mixture of experts".bytes().map(u32::from).collect();
//! let output = model.forward(token_tensor([text.as_slice()].into_iter(), &device));
//! assert_eq!(output.logits.dims(), [1, 18, 257]); // [batch, sequence, vocab_size]
//!
//! // What the routers did with the 18 tokens: how far from 1, the balance of an even load?
//! let mut load = TokensPerExpert::default();
//! load.add(&output.routing, None, 18);
//! for (routing, balance) in output.routing.iter().zip(per_layer(&output.routing, None, &load)) {
//!     println!("layer {}: {balance}, load {}", routing.layer, routing.plan.load(None));
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

pub mod accounting;
pub mod attention;
pub mod batch;
pub mod block;
pub mod cache;
pub mod config;
pub mod decode;
pub mod evaluate;
pub mod feed_forward;
pub mod generate;
pub mod language_model;
pub mod layout;
pub mod loss;
pub mod moe;
pub mod norm;
pub mod observer;
pub mod parameters;
pub mod parts;
pub mod sampling;
pub mod testing;
