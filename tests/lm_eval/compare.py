"""Sets what lm-eval finds through `infer serve` beside what its `hf` backend finds in the same checkpoint, sample by sample.

    pip install torch==2.15.0 transformers==5.24.0 accelerate 'lm-eval[api]==0.4.13'
    cargo build --release --bin firebox-infer
    python tests/lm_eval/compare.py FOLDER [--tolerance 1e-5]

FOLDER is a checkpoint's, from the root of the repository. Tasks of choices, of rolling windows and of writing stand beside
this file; their text is in tests/fixtures/corpus. A prompt beyond the context is cut by lm-eval, which keeps one token of its
`max_length` for itself with a server, and two in rolling windows: `max_length=N` there is N - 2 with `hf`, or N - 1 where it writes.
Exits with 1 where a log-probability differs by more than the tolerance, or a choice or a text at all.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SCORES = "firebox_choices,firebox_rolling"
WRITING = "firebox_writing"
TEMPLATE = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"


def evaluate(output, tasks, model, arguments, *options):
    """Runs lm-eval. Returns its metrics, and the answers to each document of each task."""
    command = [Path(sys.executable).parent / "lm_eval", "--model", model, "--tasks", tasks]
    command += ["--model_args", ",".join(f"{key}={value}" for key, value in arguments.items())]
    command += ["--include_path", HERE, "--output_path", output, "--log_samples", "--batch_size", "1", *options]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "OPENAI_API_KEY": "none"}
    done = subprocess.run(command, env=os.environ | offline, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"lm_eval has failed with {model} and {arguments}:\n{done.stderr[-3000:]}")
    metrics = {}
    for file in Path(output).rglob("results_*.json"):
        for task, found in json.loads(file.read_text())["results"].items():
            pairs = ((name.split(",")[0], value) for name, value in found.items())
            metrics |= {
                f"{task} {name}": value
                for name, value in pairs
                if isinstance(value, float) and not name.endswith("_stderr")
            }
    answers = {}
    for file in Path(output).rglob("samples_*.jsonl"):
        for line in file.read_text().splitlines():
            sample = json.loads(line)
            task = re.match(r"samples_(.*)_\d{4}-", file.name)[1]
            answers[task, sample["doc_id"]] = sample["filtered_resps"]
    return metrics, answers


def difference(expected, found):
    """The largest difference of two answers, relative where a number is above 1; infinite where a choice or a text differs.
    lm-eval adds up log-probabilities in f32 with `hf`, and in f64 with a server."""
    if isinstance(expected, list):
        if len(expected) != len(found):
            return float("inf")
        return max((difference(*pair) for pair in zip(expected, found)), default=0.0)
    try:
        expected, found = float(expected), float(found)
        return abs(expected - found) / max(1.0, abs(expected))
    except ValueError:
        return 0.0 if expected == found else float("inf")


class Server:
    """`infer serve` of a folder."""

    def __init__(self, infer, folder):
        command = [infer, "serve", folder, "--port", "0", "--name", "model"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        for line in self.process.stderr:
            if found := re.search(r"serving \S+ at (http://\S+)", line):
                self.url = found[1]
                return
        sys.exit(f"{' '.join(map(str, command))} does not serve")

    def __enter__(self):
        return self.url

    def __exit__(self, *_):
        self.process.terminate()
        self.process.stderr.read()
        self.process.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--infer", type=Path, default=Path("target/release/firebox-infer"))
    parser.add_argument("--tolerance", type=float, default=1e-5)
    options = parser.parse_args()
    context = json.loads((options.checkpoint / "config.json").read_text())["max_position_embeddings"]
    worst = 0.0
    with tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        outputs = (folder / f"{number}" for number in range(100))
        # With a template for chats, which makes no difference to the rest.
        checkpoint = folder / "checkpoint"
        shutil.copytree(options.checkpoint, checkpoint)
        (checkpoint / "chat_template.jinja").write_text(TEMPLATE)
        hf = {"pretrained": checkpoint, "dtype": "float32"}
        kinds = {
            "scores": (SCORES, hf | {"max_length": context - 2}, ()),
            "writing": (WRITING, hf | {"max_length": context - 1}, ()),
            "chat": (WRITING, hf | {"max_length": 8 * context}, ("--apply_chat_template",)),
        }
        if context < 2048:
            # Chats are not cut, and those with all of the notes would be refused.
            kinds["chat"] = (WRITING, kinds["chat"][1], ("--apply_chat_template", "--limit", "4"))
        expected = {}
        for kind, (tasks, arguments, more) in kinds.items():
            expected[kind] = evaluate(next(outputs), tasks, "hf", arguments, "--device", "cpu", *more)
            for name, value in expected[kind][0].items():
                print(f"hf, {kind}: {name} {value:.6f}")
        with Server(options.infer, checkpoint) as url:
            remote = {"model": "model", "base_url": f"{url}/v1/completions", "max_length": context}
            local = remote | {"tokenizer": checkpoint, "tokenizer_backend": "huggingface"}
            chat = {"model": "model", "base_url": f"{url}/v1/chat/completions"}
            runs = [
                ("server's tokenizer", ["scores", "writing"], "local-completions", remote),
                ("tokenizer of its own", ["scores", "writing"], "local-completions", local),
                ("8 at once", ["scores", "writing"], "local-completions", remote | {"num_concurrent": 8}),
                ("chat", ["chat"], "local-chat-completions", chat),
                ("chat, 4 at once", ["chat"], "local-chat-completions", chat | {"num_concurrent": 4}),
            ]
            for name, of, model, arguments in runs:
                for kind in of:
                    tasks, _, more = kinds[kind]
                    metrics, answers = evaluate(next(outputs), tasks, model, arguments, *more)
                    theirs = expected[kind]
                    if answers.keys() != theirs[1].keys() or not answers:
                        sys.exit(f"{name}, {kind}: other documents than with hf")
                    for key, value in theirs[1].items():
                        if difference(value, answers[key]) > options.tolerance:
                            print(f"{name}, {key}: {answers[key]}, and {value} with hf")
                    largest = max(difference(value, answers[key]) for key, value in theirs[1].items())
                    metric = max(difference(value, metrics[key]) for key, value in theirs[0].items())
                    print(f"{name}, {kind}: {len(answers)} documents, largest difference {largest:.2g}; of a metric {metric:.2g}")
                    worst = max(worst, largest)
    return 0 if worst <= options.tolerance else 1


if __name__ == "__main__":
    sys.exit(main())
