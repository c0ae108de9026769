#!/usr/bin/env bash
# transformers 5.24.0: `rope_scaling` in a config.json replaces all of `rope_parameters`, the base of the frequencies included.
#
# Newer files say `rope_parameters`, older ones `rope_theta` and `rope_scaling`. A file in the new spelling to which somebody
# adds `rope_scaling`, as model cards tell people to do for longer contexts, loses `rope_parameters.rope_theta`: the base
# becomes the default of the configuration class, 10,000 for Llama, without a word. Even a `rope_scaling` of the type
# "default", which scales nothing, does so. With `rope_theta` beside it, the base is kept.
#
# Needs Python 3.10 or newer and PyPI. Exits with 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "transformers==5.24.0"
cat > "$folder/read.py" <<'PYTHON'
import json
import pathlib
import sys

from transformers import AutoConfig

folder = pathlib.Path(sys.argv[1])
base = {"model_type": "llama", "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0}}
for change in [
    {},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    {"rope_scaling": {"rope_type": "default"}},
    {"rope_scaling": {"rope_type": "linear", "factor": 2.0}, "rope_theta": 500000.0},
]:
    (folder / "config.json").write_text(json.dumps(base | change))
    print(change, AutoConfig.from_pretrained(folder).rope_parameters["rope_theta"])
PYTHON
found=$("$folder/venv/bin/python" "$folder/read.py" "$folder" 2>/dev/null)
printf '%s\n' "$found"
expected="{} 500000.0
{'rope_scaling': {'rope_type': 'linear', 'factor': 2.0}} 10000.0
{'rope_scaling': {'rope_type': 'default'}} 10000.0
{'rope_scaling': {'rope_type': 'linear', 'factor': 2.0}, 'rope_theta': 500000.0} 500000.0"
if [ "$found" != "$expected" ]; then
    echo "changed: transformers 5.24.0 printed" "$expected" "when this was written" >&2
    exit 1
fi
