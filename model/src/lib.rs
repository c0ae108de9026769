//! The Firebox network: a decoder-only mixture-of-experts transformer, written once against Burn's
//! backend-independent tensors.
//!
//! Start at [`language_model`]; the router and its experts are in [`moe`]. [`accounting`] computes the cost of a
//! configuration without allocating the model.

pub mod accounting;
pub mod attention;
pub mod batch;
pub mod block;
pub mod cache;
pub mod config;
pub mod evaluate;
pub mod feed_forward;
pub mod generate;
pub mod language_model;
pub mod loss;
pub mod moe;
pub mod norm;
pub mod parameters;
pub mod parts;
