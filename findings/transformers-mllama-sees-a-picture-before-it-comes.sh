#!/usr/bin/env bash
# transformers 5.24.0: in Mllama (Llama 3.2 Vision), a token that stands before its picture depends on that picture.
#
# The cross-attention mask lets a token see the pictures in front of it. A token with no picture in front, such as those of a system
# message, is hidden from all positions; its row of the mask is then multiplied by 0 instead of being left at the lowest number, so
# that it attends to every position of every picture of its row, and only the feed-forward half of the layer is switched off for
# it. So the model is not causal: another picture changes the logits of the text before it. The same holds
# for a text without a picture in a batch with others: its logits are not those that it has alone.
#
# Needs Python 3.10 or newer and PyPI (PyTorch for the CPU suffices). Exits with 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "transformers==5.24.0" "torch==2.15.0"
cat > "$folder/run.py" <<'PYTHON'
import torch
from transformers import MllamaConfig, MllamaForConditionalGeneration

torch.manual_seed(0)
VOCABULARY = 40
config = MllamaConfig(
    image_token_index=VOCABULARY,
    vision_config=dict(
        hidden_size=16, intermediate_size=32, attention_heads=2, num_hidden_layers=1, num_global_layers=0, image_size=8,
        patch_size=4, max_num_tiles=1, supported_aspect_ratios=[[1, 1]], intermediate_layers_indices=[0], vision_output_dim=32,
    ),
    text_config=dict(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1,
        num_hidden_layers=3, cross_attention_layers=[1], max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    ),
)
model = MllamaForConditionalGeneration(config).eval()
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if "gate" in name and parameter.numel() == 1:
            parameter.fill_(1.0)  # open, as in a trained model

PICTURE_AT = 3
tokens = torch.tensor([[1, 5, 6, VOCABULARY, 7, 8]])


def logits(seed, rows=tokens):
    pictures = torch.randn(1, 1, 1, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
    count = len(rows)
    mask = torch.zeros(count, rows.shape[1], 1, 1, dtype=torch.long)
    mask[0, PICTURE_AT:] = 1
    ids = torch.zeros(count, 1, dtype=torch.long)
    ids[0] = 1
    tiles = torch.ones(count, 1, 1, dtype=torch.long)
    pixels = torch.cat([pictures] + [torch.zeros_like(pictures)] * (count - 1))
    with torch.no_grad():
        return model(input_ids=rows, pixel_values=pixels, aspect_ratio_ids=ids, aspect_ratio_mask=tiles, cross_attention_mask=mask).logits


def differ(a, b):
    return "differ" if (a - b).norm() / b.norm() > 0.01 else "are equal"


one, other = logits(1), logits(2)
print("before the picture, two pictures' logits", differ(one[0, :PICTURE_AT], other[0, :PICTURE_AT]))
with torch.no_grad():
    model.model.language_model.layers[1].cross_attn_attn_gate.zero_()
one, other = logits(1), logits(2)
print("with the attention half shut, they", differ(one[0, :PICTURE_AT], other[0, :PICTURE_AT]))
with torch.no_grad():
    model.model.language_model.layers[1].cross_attn_attn_gate.fill_(1.0)
text = torch.tensor([[1, 5, 6, 9, 7, 8]])
with torch.no_grad():
    alone = model(input_ids=text).logits[0]
beside = logits(1, torch.cat([tokens, text]))[1]
print("a text alone and beside a picture's", differ(beside, alone))
PYTHON
found=$("$folder/venv/bin/python" "$folder/run.py" 2>/dev/null)
printf '%s\n' "$found"
expected="before the picture, two pictures' logits differ
with the attention half shut, they are equal
a text alone and beside a picture's differ"
if [ "$found" != "$expected" ]; then
    echo "changed: transformers 5.24.0 printed" "$expected" "when this was written" >&2
    exit 1
fi
