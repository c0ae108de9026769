#!/usr/bin/env bash
# Burn 0.22.1, flex backend: the sum of a tensor depends on how the tensor lies in memory.
#
# A contiguous f32 tensor of 2^25 ones sums to 33554432. The same ones as a view (every second column of a matrix twice
# as wide) sum to 16777216: a view is added up in a single f32, in which 2^24 + 1 rounds to 2^24. One would expect both to be
# exact, or both to be off. A mean of the view is 0.5 where it should be 1. Copying the view first (here by
# a cast to f64 and back) gives the right sum.
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
burn-core = { version = "=0.22.1", default-features = false, features = ["std", "flex", "rayon", "simd"] }
TOML
cat > "$folder/src/main.rs" <<'RUST'
use burn_core::tensor::{Device, Tensor};

fn main() {
    let device = Device::flex();
    let half = 1usize << 25;
    let contiguous = Tensor::<2>::ones([half, 1], &device);
    let view = Tensor::<2>::ones([half, 2], &device).narrow(1, 0, 1);
    let sum = |tensor: Tensor<2>| tensor.sum().into_scalar::<f32>();
    let mean = |tensor: Tensor<2>| tensor.mean().into_scalar::<f32>();
    println!("contiguous {} {}", sum(contiguous.clone()), mean(contiguous));
    println!("view {} {}", sum(view.clone()), mean(view));
}
RUST
found=$(cd "$folder" && CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$folder/target}" cargo run --quiet --release)
printf '%s\n' "$found"
expected='contiguous 33554432 1
view 16777216 0.5'
if [ "$found" != "$expected" ]; then
    echo "changed: burn-core 0.22.1 printed" "$expected" "when this was written" >&2
    exit 1
fi
