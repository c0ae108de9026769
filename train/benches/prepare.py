"""Measures `cargo train prepare` of a compressed JSON Lines file beside decompression and tokenization alone.

    python train/benches/prepare.py [--megabytes 300] [--train target/release/firebox-train]    (pip: tokenizers, zstandard)

The text is the code of the packages that Cargo has downloaded, in documents as they are there, repeated under other names until
there is enough of it; the tokenizer is a byte-level BPE of 32,000 ids that is trained on its beginning. What is compared with is
the `tokenizers` package on all cores, given the documents in batches of 4 MiB, and zstandard's decompression in 64 KiB pieces; the
time of parsing JSON does not count for it. Peak memory is that of `prepare` alone, as Linux has it in /proc: the `ru_maxrss` of a
child is never less than what its parent held when it was started.
"""

import argparse
import json
import os
import shlex
import subprocess
import tempfile
import time
from pathlib import Path

import tokenizers
import zstandard

BATCH = 4 << 20
SAMPLE = 10_000_000
CONFIG = """
[model]
layers = 1
d_model = 64
heads = 1
context_length = 256
feed_forward = "dense"
dense = {{ d_ff = 64 }}
[tokenizer]
kind = "file"
path = "{tokenizer}"
end_of_text = "<|endoftext|>"
[data]
cache = "{cache}"
[data.validation]
fraction = 0.01
[[data.source]]
name = "lines"
jsonl = ["{lines}"]
[train]
steps = 1
[optimizer]
learning_rate = 1e-3
[schedule]
batch_tokens = 256
"""


def documents(size):
    """Texts of so many bytes together."""
    home = Path(os.environ.get("CARGO_HOME", Path.home() / ".cargo"))
    files = sorted((home / "registry" / "src").rglob("*.rs"))
    given, times = 0, 0
    while given < size:
        for file in files:
            try:
                text = file.read_text()
            except UnicodeDecodeError:
                continue
            text = f"// {times} {file.name}\n{text}"
            given += len(text.encode())
            yield text
            if given >= size:
                return
        times += 1


def write_lines(path, size):
    with path.open("wb") as file, zstandard.ZstdCompressor().stream_writer(file) as writer:
        for text in documents(size):
            writer.write(json.dumps({"text": text}, ensure_ascii=False).encode() + b"\n")


def train_tokenizer(path):
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=32_000,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents(SAMPLE), trainer)
    tokenizer.encode_special_tokens = True
    tokenizer.save(str(path))
    return tokenizer


def alone(path, tokenizer):
    """Seconds of decompression and of tokenization, and the number of tokens."""
    started = time.perf_counter()
    with path.open("rb") as file:
        reader = zstandard.ZstdDecompressor().stream_reader(file)
        while reader.read(64 << 10):
            pass
    decompression, tokenization, tokens = time.perf_counter() - started, 0.0, 0
    batch, length = [], 0

    def encode():
        nonlocal batch, length, tokenization, tokens
        started = time.perf_counter()
        tokens += sum(len(found) for found in tokenizer.encode_batch_fast(batch))
        tokenization += time.perf_counter() - started
        batch, length = [], 0

    with path.open("rb") as file:
        for line in zstandard.open(file, "rt", encoding="utf-8", newline="\n"):
            batch.append(json.loads(line)["text"])
            length += len(line)
            if length >= BATCH:
                encode()
    encode()
    return decompression, tokenization, tokens


def prepare(command):
    """Seconds that a command takes, and its peak memory in MiB."""
    started, peak = time.perf_counter(), 0
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
                if line.startswith("VmHWM:"):
                    peak = max(peak, int(line.split()[1]) / 1024)
            time.sleep(0.05)
    if process.returncode:
        raise SystemExit(process.returncode)
    return time.perf_counter() - started, peak


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--megabytes", type=int, default=300)
    arguments.add_argument("--train", default="target/release/firebox-train")
    options = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        lines, vocabulary = folder / "lines.jsonl.zst", folder / "tokenizer.json"
        size = options.megabytes * 1_000_000
        write_lines(lines, size)
        tokenizer = train_tokenizer(vocabulary)
        config = folder / "run.toml"
        config.write_text(CONFIG.format(tokenizer=vocabulary, cache=folder / "cache", lines=lines))
        decompression, tokenization, tokens = alone(lines, tokenizer)
        seconds, peak = prepare([*shlex.split(options.train), "prepare", str(config)])
    reference = decompression + tokenization
    print(
        f"{options.megabytes} MB, {tokens} tokens: decompression {decompression:.1f} s and tokenization {tokenization:.1f} s alone, "
        f"prepare {seconds:.1f} s ({reference / seconds:.2f} of their speed), {peak:.0f} MiB at most"
    )


if __name__ == "__main__":
    main()
