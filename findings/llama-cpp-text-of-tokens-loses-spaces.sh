#!/usr/bin/env bash
# llama.cpp (xllamacpp 2026.10.11549): the text that `llama_detokenize` makes of tokens is not the text that they were made of.
#
# For byte-level vocabularies with the splits of Llama 3 and GPT-2 (`tokenizer.ggml.pre` of `llama-bpe` and `gpt-2`) it takes out spaces
# in front of `?`, `!`, `.`, `,` and of English contractions, as old tokenizers of transformers did; no key of the file says so. The
# same bytes under another name, `qwen2`, come back whole. Pieces of single tokens (`llama_token_to_piece`) are whole, too, so that a
# text that is streamed differs from the same tokens turned into text at once: `x .y` in a program becomes `x.y`.
#
# Needs Python 3.10 or newer and PyPI, on Linux for x86-64. Exits with 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "xllamacpp==2026.10.11549" "gguf==0.19.0"
cat > "$folder/run.py" <<'PYTHON'
import ctypes
import sys
from pathlib import Path

import gguf
import xllamacpp

library = ctypes.CDLL(str(next(Path(xllamacpp.__file__).parent.glob("xllamacpp*.so"))))
pointer, integer = ctypes.c_void_p, ctypes.c_int32
integers = ctypes.POINTER(integer)


class Parameters(ctypes.Structure):
    """llama_model_params of this version, as far as the flag that only the vocabulary is read."""

    _fields_ = [
        ("pointers", pointer * 2), ("numbers", integer * 5), ("tensor_split", pointer), ("callback", pointer * 2),
        ("overrides", pointer), ("vocab_only", ctypes.c_bool), ("flags", ctypes.c_bool * 5),
    ]


def declare(name, result, *arguments):
    function = getattr(library, name)
    function.restype, function.argtypes = result, arguments
    return function


quiet = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, pointer)(lambda *_: None)
declare("llama_log_set", None, type(quiet), pointer)(quiet, None)
declare("llama_backend_init", None)()
defaults = declare("llama_model_default_params", Parameters)
load = declare("llama_model_load_from_file", pointer, ctypes.c_char_p, Parameters)
vocabulary_of = declare("llama_model_get_vocab", pointer, pointer)
switch = ctypes.c_bool
tokenize = declare("llama_tokenize", integer, pointer, ctypes.c_char_p, integer, integers, integer, switch, switch)
piece = declare("llama_token_to_piece", integer, pointer, integer, ctypes.c_char_p, integer, integer, switch)
detokenize = declare("llama_detokenize", integer, pointer, integers, integer, ctypes.c_char_p, integer, switch, switch)


def characters():
    """The character that stands for each byte in a byte-level vocabulary."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


def texts(splits, text):
    """What comes back of a text's tokens: of all at once, and of one after the other."""
    path = Path(sys.argv[1]) / f"{splits}.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(splits)
    writer.add_token_list([*characters(), "<end>", "!!"])
    writer.add_token_types([1] * 256 + [3, 1])
    writer.add_token_merges(["! !"])
    writer.add_bos_token_id(256)
    writer.add_eos_token_id(256)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    parameters = defaults()
    parameters.vocab_only = True
    model = load(str(path).encode(), parameters)
    vocabulary = vocabulary_of(model)
    raw = text.encode()
    ids = (integer * 64)()
    count = tokenize(vocabulary, raw, len(raw), ids, 64, False, False)
    room = ctypes.create_string_buffer(256)
    length = detokenize(vocabulary, ids, count, room, 256, False, False)
    whole = room.raw[:length].decode()
    pieces = b""
    for token in ids[:count]:
        length = piece(vocabulary, token, room, 256, 0, False)
        pieces += room.raw[:length]
    return whole, pieces.decode()


text = "x .y it 's !"
for splits in ("llama-bpe", "gpt-2", "qwen2"):
    whole, pieces = texts(splits, text)
    print(f"{splits}: {text!r} -> at once {whole!r}, token by token {pieces!r}")
PYTHON
seen=$("$folder/venv/bin/python" "$folder/run.py" "$folder")
echo "$seen"
expected=$(cat <<'TEXT'
llama-bpe: "x .y it 's !" -> at once "x.y it's!", token by token "x .y it 's !"
gpt-2: "x .y it 's !" -> at once "x.y it's!", token by token "x .y it 's !"
qwen2: "x .y it 's !" -> at once "x .y it 's !", token by token "x .y it 's !"
TEXT
)
[ "$seen" = "$expected" ] || { echo "the behaviour has changed; expected:"; echo "$expected"; exit 1; }
