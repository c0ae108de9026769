"""Measures the memory of ranks that train a model together beside what `cargo train check` predicts.

    cargo build --release --bin firebox-train --features mpi
    python train/benches/rank_memory.py [--ranks 4] [--layers 4 16] [--train target/release/firebox-train]    (needs mpirun)

Two models of equal width are trained for three steps, one sequence of 32 tokens at a time, so that activations are small. Each
rank is a process of one thread, whose peak is what the operating system says of it at its end. The difference of the two models
is compared, so that what does not grow with a model counts nothing: the program, its libraries and MPI's buffers.
"""

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

MEBI = 1 << 20
CONTEXT = 32
CONFIG = """
[model]
layers = {layers}
d_model = 256
heads = 4
context_length = {context}
[model.experts]
count = 16
top_k = 1
d_ff = 512
[tokenizer]
kind = "bytes"
[data]
cache = "{folder}/cache"
[data.validation]
by = "tail"
fraction = 0.1
[[data.source]]
name = "text"
files = ["{folder}/text.txt"]
[train]
steps = 3
micro_batch = 1
validation_tokens = {context}
log_every = 1
[optimizer]
learning_rate = 1e-3
[schedule]
batch_tokens = {batch_tokens}
[checkpoint]
keep_best = false
"""


def on_rank(folder, command):
    """Runs a rank's command, and leaves its peak memory in bytes in a file that has the rank's number as its name."""
    names = ("OMPI_COMM_WORLD_RANK", "PMI_RANK")
    rank = next(os.environ[name] for name in names if name in os.environ)
    code = subprocess.run(command).returncode
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
    (folder / rank).write_text(str(peak))
    sys.exit(code)


def main():
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--ranks", type=int, default=4)
    arguments.add_argument("--layers", type=int, nargs=2, default=[4, 16])
    arguments.add_argument("--sequences", type=int, default=1, help="of a rank in a step, one micro-batch each")
    arguments.add_argument("--mpirun", default="mpirun --oversubscribe")
    arguments.add_argument("--train", default="target/release/firebox-train")
    options = arguments.parse_args()
    train, ranks = shlex.split(options.train), options.ranks
    predicted, measured = [], []
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        (folder / "text.txt").write_text("".join(f"{number} is a number.\n" for number in range(10_000)))
        for layers in options.layers:
            config, peaks = folder / f"{layers}.toml", folder / f"peaks-{layers}"
            peaks.mkdir()
            config.write_text(
                CONFIG.format(
                    layers=layers,
                    context=CONTEXT,
                    folder=folder,
                    batch_tokens=CONTEXT * ranks * options.sequences,
                )
            )
            layout = ["--data", str(ranks)]
            check = [*train, "check", str(config), *layout, "--json"]
            plan = json.loads(subprocess.run(check, check=True, stdout=subprocess.PIPE).stdout)["ranks"]
            predicted.append(plan["weights"] + plan["gradients"] + plan["moments"])
            run = [*train, "run", str(config), *layout, "--threads", "1", "--out", str(folder / f"run-{layers}")]
            launch = [*shlex.split(options.mpirun), "-n", str(ranks), sys.executable, __file__, "--on-rank", str(peaks)]
            subprocess.run([*launch, *run], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            measured.append([int((peaks / str(rank)).read_text()) for rank in range(ranks)])
    few, many = options.layers
    expected = predicted[1] - predicted[0]
    print(f"{many} layers beside {few}, {predicted[1] / MEBI:.0f} and {predicted[0] / MEBI:.0f} MiB predicted of a rank")
    for rank in range(ranks):
        small, large = measured[0][rank], measured[1][rank]
        found = large - small
        print(
            f"rank {rank}: {large / MEBI:.0f} and {small / MEBI:.0f} MiB measured; "
            f"difference {found / MEBI:.0f} MiB of {expected / MEBI:.0f} MiB predicted, ratio {found / expected:.3f}"
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--on-rank"]:
        on_rank(Path(sys.argv[2]), sys.argv[3:])
    main()
