#!/usr/bin/env bash
# transformers 5.24.0: `max_window_layers` says where sliding windows begin in Qwen2 and Qwen3, and nothing in Qwen3-MoE.
#
# The three families share the fields `use_sliding_window`, `sliding_window` and `max_window_layers`, and published files of
# all of them have all three. In Qwen2 and Qwen3 the layers before `max_window_layers` attend to the whole context, so that
# a number as large as that of the layers leaves no window. In Qwen3-MoE the same file gives every layer the window.
# Dots.llm1, which has no switch, follows Qwen3. What is printed is whether the logits are those of the model without windows.
#
# Needs Python 3.10 or newer and PyPI. Exits with 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "transformers==5.24.0" "torch==2.15.0"
cat > "$folder/windows.py" <<'PYTHON'
import torch
import transformers

SHAPE = dict(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             intermediate_size=48, max_position_embeddings=64)
EXPERTS = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16)


def logits(config):
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.arange(24)[None]).logits


for kind, more in [("Qwen2", {}), ("Qwen3", {}), ("Qwen3Moe", EXPERTS)]:
    make = getattr(transformers, f"{kind}Config")
    window = dict(use_sliding_window=True, sliding_window=4)
    whole = logits(make(**SHAPE, **more, use_sliding_window=False))
    for layers in (2, 0):
        found = logits(make(**SHAPE, **more, **window, max_window_layers=layers))
        print(kind, "max_window_layers", layers, "same as without a window:", torch.equal(found, whole))
PYTHON
found=$("$folder/venv/bin/python" "$folder/windows.py" 2>/dev/null)
printf '%s\n' "$found"
expected="Qwen2 max_window_layers 2 same as without a window: True
Qwen2 max_window_layers 0 same as without a window: False
Qwen3 max_window_layers 2 same as without a window: True
Qwen3 max_window_layers 0 same as without a window: False
Qwen3Moe max_window_layers 2 same as without a window: False
Qwen3Moe max_window_layers 0 same as without a window: False"
if [ "$found" != "$expected" ]; then
    echo "changed: transformers 5.24.0 printed" "$expected" "when this was written" >&2
    exit 1
fi
