"""Hugging Face's Mixtral on PyTorch: the counterpart of `cargo train bench configs/reference.toml` and `cargo infer bench`.

Needs torch, transformers and safetensors (measured with 2.15, 5.23 and 0.8). Run it on the same machine,
alternating with Firebox:

    python train/benches/pytorch.py train [--large] [--dense] [--compile] [--autocast] [--experts eager|grouped_mm]
    python train/benches/pytorch.py save FOLDER [--large]          # random weights, for both generation benchmarks
    python train/benches/pytorch.py generate FOLDER [--prompt 128] [--new 64] [--autocast] [--experts eager|grouped_mm]

--autocast computes matrix products in bf16, as `train.precision = "bf16"` and `--precision bf16` do. Each measurement
prints one JSON object.
"""

import argparse
import json
import resource
import statistics
import time

import torch
from transformers import AutoModelForCausalLM, MixtralConfig, MixtralForCausalLM


def config(large, dense=False):
    """The reference model, or one about 15 times as large; dense: its dense baseline of equal FLOPs per token."""
    width, layers, experts, d_ff = (512, 8, 16, 1024) if large else (256, 4, 8, 512)
    count, top_k, inner = (1, 1, 2 * d_ff) if dense else (experts, 2, d_ff)
    return MixtralConfig(
        vocab_size=4096 if large else 512, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=width // 64, num_key_value_heads=1, num_local_experts=count, num_experts_per_tok=top_k,
        max_position_embeddings=2048, router_aux_loss_coef=0.01,
    )


def train(arguments):
    rows, length = (4, 512) if arguments.large else (8, 256)
    shape = config(arguments.large, arguments.dense)
    shape.output_router_logits, shape.use_cache = True, False
    if arguments.experts:
        shape._experts_implementation = arguments.experts
    shape._attn_implementation = "sdpa"
    model = MixtralForCausalLM(shape)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    run = torch.compile(model) if arguments.compile else model
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, fused=True)
    seconds = []
    for step in range(arguments.steps + 3):
        ids = torch.randint(0, shape.vocab_size, (rows, length))
        started = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=arguments.autocast):
            loss = run(input_ids=ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step >= 3:
            seconds.append(time.perf_counter() - started)
    step_seconds = statistics.median(seconds)
    return {
        "parameters": parameters,
        "step_seconds": step_seconds,
        "tokens_per_second": rows * length / step_seconds,
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def generate(arguments):
    model = AutoModelForCausalLM.from_pretrained(
        arguments.folder, dtype=torch.float32, attn_implementation="sdpa", experts_implementation=arguments.experts
    ).eval()
    prompt = [[index * 7919 % model.config.vocab_size for index in range(arguments.prompt)]]
    first, rest = float("inf"), float("inf")
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=arguments.autocast):
        for _ in range(5):
            started = time.perf_counter()
            output = model(input_ids=torch.tensor(prompt), use_cache=True)
            token = output.logits[:, -1].argmax(-1, keepdim=True)
            first = min(first, time.perf_counter() - started)
            started = time.perf_counter()
            for _ in range(arguments.new):
                output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
                token = output.logits[:, -1].argmax(-1, keepdim=True)
            rest = min(rest, time.perf_counter() - started)
    return {
        "prefill_tokens_per_second": arguments.prompt / first,
        "decode_tokens_per_second": arguments.new / rest,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "save", "generate"])
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--dense", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--autocast", action="store_true")
    parser.add_argument("--experts", default=None)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--prompt", type=int, default=128)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.what == "save":
        MixtralForCausalLM(config(arguments.large)).save_pretrained(arguments.folder)
        return
    result = train(arguments) if arguments.what == "train" else generate(arguments)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
