#!/usr/bin/env bash
# transformers 5.24.0: in Mllama (Llama 3.2 Vision), tiles that aspect_ratio_mask leaves out change what is seen of the others.
#
# aspect_ratio_mask marks the tiles of a picture that are in use. One would guess that the vision tower hides the others, as
# padding is hidden in a text. It hides a pair of positions only if both are unused (the mask is an outer product), so that those
# in use attend to the unused ones. So pixels that are masked out are part of the picture, and to leave unused tiles out to save time
# gives another model. The image processor puts zeros there: a reimplementation must do so too, and still compute these tiles.
#
# Needs Python 3.10 or newer and PyPI (PyTorch for the CPU suffices). Exits with 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "transformers==5.24.0" "torch==2.15.0"
cat > "$folder/run.py" <<'PYTHON'
import torch
from transformers.models.mllama.configuration_mllama import MllamaVisionConfig
from transformers.models.mllama.modeling_mllama import MllamaVisionModel

torch.manual_seed(0)
# Tiles of four patches and a class: five positions, filled up to eight.
config = MllamaVisionConfig(
    hidden_size=16, intermediate_size=32, attention_heads=2, num_hidden_layers=2, num_global_layers=0, image_size=8, patch_size=4,
    max_num_tiles=2, supported_aspect_ratios=[[1, 1], [1, 2]], intermediate_layers_indices=[0], vision_output_dim=32,
)
tower = MllamaVisionModel(config).eval()
with torch.no_grad():
    for parameter in tower.parameters():
        parameter.normal_(0, 0.3)


def features(used, unused_pixels):
    """Of the first tile, the only one in use."""
    pixels = torch.zeros(1, 1, 2, 3, 8, 8)
    pixels[:, :, 0] = torch.randn(3, 8, 8, generator=torch.Generator().manual_seed(1))
    pixels[:, :, 1] = unused_pixels
    with torch.no_grad():
        output = tower(
            pixel_values=pixels, aspect_ratio_ids=torch.ones(1, 1, dtype=torch.long), aspect_ratio_mask=torch.tensor([[used]])
        )
    return output.last_hidden_state[0, 0, 0]


def differ(a, b):
    return "differ" if (a - b).norm() / b.norm() > 1e-3 else "are equal"


zeros = features([1, 0], 0.0)
print("with other pixels in the tile that is masked out, features", differ(features([1, 0], 1.0), zeros))
print("with the same pixels there and the mask lifted, features", differ(features([1, 1], 0.0), zeros))
PYTHON
found=$("$folder/venv/bin/python" "$folder/run.py")
printf '%s\n' "$found"
expected="with other pixels in the tile that is masked out, features differ
with the same pixels there and the mask lifted, features differ"
if [ "$found" != "$expected" ]; then
    echo "changed: transformers 5.24.0 printed" "$expected" "when this was written" >&2
    exit 1
fi
