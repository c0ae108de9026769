//! The Firebox language model: a decoder-only mixture-of-experts transformer, written once against
//! Burn's backend-independent tensors.
//!
//! Start at [`language_model`]; the router and its experts are in [`moe`]. A checkpoint is read and
//! written by [`checkpoint`], and [`accounting`] says what a configuration costs without allocating it.

pub mod accounting;
pub mod adapter;
pub mod allocator;
pub mod attention;
pub mod batch;
pub mod block;
pub mod cache;
pub mod checkpoint;
pub mod config;
pub mod device;
pub mod evaluate;
pub mod failure;
pub mod feed_forward;
pub mod generate;
pub mod kernels;
pub mod language_model;
pub mod loss;
pub mod memory;
pub mod moe;
pub mod norm;
pub mod number;
pub mod parameters;
pub mod parts;
pub mod report;
pub mod rotary;
pub mod terminal;
pub mod testing;
pub mod tokenizer;
