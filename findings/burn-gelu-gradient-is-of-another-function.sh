#!/usr/bin/env bash
# Burn 0.22.1: outside the flex backend, the gradient of `gelu` is that of another function than the one computed.
#
# `activation::gelu` computes the exact function, x Φ(x) with the error function, on every backend. Its default gradient,
# which ndarray and the GPU backends have, is the derivative of the approximation by tanh, with constants of six digits: at
# x = 2 it is 1.0861, where the derivative of what was computed is 1.0852. The flex backend has a gradient of its own, 1.0852. So a
# comparison of the gradients of two backends is off by up to 9e-4, and finite differences agree with flex alone.
#
# Needs cargo (Rust 1.95 or newer) and the crates registry. Exits with 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/src"
cat > "$folder/Cargo.toml" <<'TOML'
[package]
name = "finding"
version = "0.1.0"
edition = "2024"
[dependencies]
burn-core = { version = "=0.22.1", default-features = false, features = ["std", "flex", "ndarray", "autodiff", "rayon", "simd"] }
TOML
cat > "$folder/src/main.rs" <<'RUST'
use burn_core::tensor::{Device, Tensor, activation::gelu};

fn main() {
    for (name, device) in [("flex", Device::flex()), ("ndarray", Device::ndarray())] {
        let device = device.autodiff();
        let x = Tensor::<1>::from_floats([1.0, 2.0], &device).require_grad();
        let y = gelu(x.clone());
        let values = y.to_data().try_to_vec::<f32>().unwrap();
        let gradients = y.sum().backward();
        let gradient = x.grad(&gradients).unwrap().to_data().try_to_vec::<f32>().unwrap();
        println!("{name}: values {values:.4?}, gradient {gradient:.4?}");
    }
}
RUST
found=$(cd "$folder" && CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$folder/target}" cargo run --quiet --release)
printf '%s\n' "$found"
expected=''
if [ "$found" != "$expected" ]; then
    echo "changed: burn-core 0.22.1 printed" "$expected" "when this was written" >&2
    exit 1
fi
