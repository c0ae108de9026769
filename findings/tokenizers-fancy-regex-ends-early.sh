#!/usr/bin/env bash
# tokenizers 0.22.2 with the feature `fancy-regex`: one long run of spaces ends the splitting of a text without an error.
#
# The pattern is GPT-2's. Behind 1.2 million spaces, the words of the text are one piece: fancy-regex gives up when its stack
# of backtracking has a million entries, and tokenizers takes that for the end of the matches. With the feature `onig`,
# the engine of the Python wheel, the text is split to its end. One would expect the same pieces, or an error. The engines
# also read a pattern in two ways: \p{N}{1,3}+ is possessive for fancy-regex and takes three digits at most; Oniguruma
# repeats the repetition and takes them all.
#
# Needs cargo (Rust 1.95 or newer), a C compiler and the crates registry. Exits with 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/src"
cat > "$folder/src/main.rs" <<'RUST'
use tokenizers::tokenizer::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer, SplitDelimiterBehavior};
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

fn lengths(pattern: &str, text: &str) -> Vec<usize> {
    let pattern = SplitPattern::Regex(pattern.to_owned());
    let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false).unwrap();
    let mut text = PreTokenizedString::from(text);
    split.pre_tokenize(&mut text).unwrap();
    let pieces = text.get_splits(OffsetReferential::Original, OffsetType::Byte);
    pieces.into_iter().map(|(piece, _, _)| piece.len()).collect()
}

fn main() {
    let gpt2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
    let text = format!("a{}one two three", " ".repeat(1_200_000));
    println!("{:?} {:?}", lengths(gpt2, &text), lengths(r"\p{N}{1,3}+", "1234567"));
}
RUST
found=""
for engine in fancy-regex onig; do
    cat > "$folder/Cargo.toml" <<TOML
[package]
name = "finding"
version = "0.1.0"
edition = "2024"
[dependencies]
tokenizers = { version = "=0.22.2", default-features = false, features = ["$engine"] }
TOML
    found+="$engine $(cd "$folder" && CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-$folder/target}" cargo run --quiet --release)"$'\n'
done
printf '%s' "$found"
expected='fancy-regex [1, 1200013] [3, 3, 1]
onig [1, 1199999, 4, 4, 6] [7]'
if [ "${found%$'\n'}" != "$expected" ]; then
    echo "changed: tokenizers 0.22.2 printed" "$expected" "when this was written" >&2
    exit 1
fi
