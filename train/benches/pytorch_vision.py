"""Hugging Face's Mllama on PyTorch: trains the model of a Firebox run on captioned pictures, and compares the time of a step.

Needs torch, transformers and pillow (measured with 2.15, 5.24 and 13.0). Run both on the same machine, alternating:

    cargo train run train/benches/vision.toml --set data.cache=prepared --out runs/vision-bench
    python train/benches/pytorch_vision.py runs/vision-bench prepared/*/validation.jsonl

The captions are those that the run holds out, in batches of 48, padded to the longest of a batch, as Firebox has them; their
pictures are in memory. It prints one JSON object: the median seconds of a step here, and those in the run's metrics.
"""

import argparse
import json
import pathlib
import statistics
import time

import numpy
import torch
from PIL import Image
from tokenizers import Tokenizer
from transformers import AutoModelForImageTextToText


def pixels_of(path):
    image = Image.open(path).convert("RGBA")
    white = Image.new("RGBA", image.size, (255,) * 4)
    values = numpy.asarray(Image.alpha_composite(white, image).convert("RGB"), dtype=numpy.float32)
    return torch.from_numpy(values.transpose(2, 0, 1) / 127.5 - 1)


def seconds_of_run(run):
    """Median seconds of a step between two lines of the metrics, without the first line, in which caches fill."""
    lines = [json.loads(line) for line in open(run / "metrics.jsonl")]
    lines = [line for line in lines if line["kind"] == "train"]
    pairs = zip(lines[1:], lines[2:])
    return statistics.median((b["seconds"] - a["seconds"]) / (b["step"] - a["step"]) for a, b in pairs)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path, help="run folder of train/benches/vision.toml")
    parser.add_argument("pairs", type=pathlib.Path, help="its held-out captions, validation.jsonl in the folder of prepared data")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=48)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)

    checkpoints = arguments.run / "checkpoints"
    folder = checkpoints / (checkpoints / "latest").read_text().strip()
    model, loaded = AutoModelForImageTextToText.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="sdpa", output_loading_info=True
    )
    assert not any(loaded.values()), loaded
    model.train()
    config = model.config.text_config
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    end = config.eos_token_id if isinstance(config.eos_token_id, int) else config.eos_token_id[0]
    pairs = [json.loads(line) for line in open(arguments.pairs)]
    rows = [[model.config.image_token_index, *tokenizer.encode(pair["text"]).ids, end] for pair in pairs]
    pictures = torch.stack([pixels_of(pair["image"]) for pair in pairs])

    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    seconds, tokens = [], []
    for step in range(arguments.steps + 5):
        chosen = torch.randint(0, len(rows), (arguments.batch,)).tolist()
        longest = max(len(rows[index]) for index in chosen)
        # What is behind the end of a caption is neither seen by it nor learned.
        ids = torch.tensor([rows[index] + [end] * (longest - len(rows[index])) for index in chosen])
        learned = torch.tensor([[1 <= place < len(rows[index]) for place in range(longest)] for index in chosen])
        labels = ids.masked_fill(~learned, -100)
        shown = pictures[chosen][:, None, None]
        ones = torch.ones(arguments.batch, 1, dtype=torch.long)
        started = time.perf_counter()
        loss = model(
            input_ids=ids, labels=labels, pixel_values=shown, aspect_ratio_ids=ones, aspect_ratio_mask=ones[:, :, None],
            use_cache=False,
        ).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step >= 5:
            seconds.append(time.perf_counter() - started)
            tokens.append(longest)
    ours, theirs = seconds_of_run(arguments.run), statistics.median(seconds)
    print(json.dumps({
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "padded_length": statistics.mean(tokens),
        "loss": loss.item(),
        "pytorch_step_seconds": theirs,
        "firebox_step_seconds": ours,
        "ratio": theirs / ours,
    }))


if __name__ == "__main__":
    main()
