//! The Firebox network: a decoder-only mixture-of-experts transformer, written once against Burn's
//! backend-independent tensors.
//!
//! Start at [`language_model`]; the router and its experts are in [`moe`]. [`accounting`] computes the cost of a
//! configuration without allocating the model.
//!
//! ```
//! use firebox_model::config::ModelKeys;
//! use firebox_model::language_model::{LanguageModel, token_tensor};
//! use firebox_model::moe::balance::{TokensPerExpert, per_layer};
//! use firebox_runtime::device::{default_name, select};
//!
//! // The `[model]` table of a run; what is absent has a default.
//! let keys: ModelKeys = serde_json::from_value(serde_json::json!({
//!     "vocab_size": 257,
//!     "layers": 2,
//!     "d_model": 32,
//!     "heads": 4,
//!     "context_length": 64,
//!     "experts": { "count": 8, "top_k": 2, "d_ff": 48 },
//! }))?;
//! let config = keys.resolve()?;
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
pub mod captions;
pub mod config;
pub mod decode;
pub mod evaluate;
pub mod feed_forward;
pub mod generate;
pub mod language_model;
pub mod layer;
pub mod layout;
pub mod linear;
pub mod looking;
pub mod loss;
pub mod matrix;
pub mod moe;
pub mod network;
pub mod norm;
pub mod observer;
pub mod parallel;
pub mod parameters;
pub mod parts;
pub mod permutation;
pub mod rope;
pub mod sampling;
pub mod testing;
pub mod timeline;
pub mod vision;
