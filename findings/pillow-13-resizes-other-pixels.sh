#!/usr/bin/env bash
# Pillow 13.0.0 resizes some pictures to other pixels than Pillow 12.3.0 and all before.
#
# `Image.resize` rounds to whole levels between its two passes, so that their order shows. Up to 12 the horizontal pass came first. 13
# begins with the vertical one where that is less work: where the height shrinks much more than the width, or the picture is more
# than twice as tall as wide. Then many values are a level off. Image processors that promise the pixels of
# training (those of transformers without torchvision are Pillow's) give a model other inputs after an update of Pillow, for
# tall pictures alone; tests on square ones see nothing.
#
# Needs Python 3.10 or newer and PyPI. Exits with 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/resize.py" <<'PYTHON'
import hashlib
import random

from PIL import Image

random.seed(1)
for name, width, height, size in [("wide", 300, 90, (120, 40)), ("square", 200, 200, (60, 60)), ("tall", 90, 300, (40, 120))]:
    pixels = bytes(random.randrange(256) for _ in range(3 * width * height))
    picture = Image.frombytes("RGB", (width, height), pixels)
    resized = picture.resize(size, Image.Resampling.BILINEAR)
    print(name, hashlib.sha256(resized.tobytes()).hexdigest()[:12])
PYTHON
for version in 12.3.0 13.0.0; do
    python3 -m venv "$folder/$version"
    "$folder/$version/bin/pip" install --quiet "pillow==$version"
    "$folder/$version/bin/python" "$folder/resize.py" > "$folder/$version.txt"
done
found=$(join "$folder/12.3.0.txt" "$folder/13.0.0.txt" --nocheck-order | while read -r name old new; do
    if [ "$old" = "$new" ]; then echo "$name: the same"; else echo "$name: other pixels"; fi
done)
printf '%s\n' "$found"
expected='wide: the same
square: the same
tall: other pixels'
if [ "$found" != "$expected" ]; then
    echo "changed: between Pillow 12.3.0 and 13.0.0 was" "$expected" "when this was written" >&2
    exit 1
fi
