#!/usr/bin/env bash
# lm-eval 0.4.13: a begin token whose id is 0 counts as none where the tokenizer is the server's.
#
# `local-completions` takes a tokenizer of its own (`tokenizer_backend=huggingface`) or asks the server for one (`remote`, its choice
# where the server has the endpoints). Texts that are scored without a context begin with the tokenizer's begin token,
# or with the token that ends texts where there is none. The remote one chooses by `or`, which takes the id 0 for none: with
# a vocabulary whose begin token is 0, such as that of DeepSeek-V3 (begin 0, end 1), likelihoods are conditioned on the token that
# ends texts, and differ from those of the same model with the other tokenizer backend. No warning says so.
#
# Needs Python 3.10 or newer and PyPI. Exits with 1 when the behaviour has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "lm-eval[api]==0.4.13" "transformers==5.24.0" "tokenizers==0.23.3"
cat > "$folder/run.py" <<'PYTHON'
import json
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from lm_eval.models.openai_completions import LocalCompletionsAPI
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

folder = sys.argv[1]


def made(begin, end):
    """A tokenizer whose begin and end tokens have these ids, in a folder."""
    words = {begin: "<begin>", end: "<end>", 2: "word"}
    inner = Tokenizer(models.WordLevel({words[i]: i for i in sorted(words)}, unk_token="word"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<begin>", eos_token="<end>")
    path = f"{folder}/tokenizer-{begin}-{end}"
    tokenizer.save_pretrained(path)
    return path, tokenizer


class Server(BaseHTTPRequestHandler):
    """The two endpoints by which lm-eval asks a server for its tokenizer."""

    def answer(self, value):
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        tokenizer = self.server.tokenizer
        self.answer({"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token, "chat_template": None})

    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.answer({"tokens": self.server.tokenizer.encode(request["prompt"], add_special_tokens=False)})

    def log_message(self, *_):
        pass


found = {}
for begin, end in ((0, 1), (1, 0)):
    path, tokenizer = made(begin, end)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    server.tokenizer = tokenizer
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1/completions"
    remote = LocalCompletionsAPI(base_url=url, model="model", tokenizer_backend="remote")
    local = LocalCompletionsAPI(base_url=url, model="model", tokenizer=path, tokenizer_backend="huggingface")
    found[begin, end] = (remote.prefix_token_id, local.prefix_token_id)
    server.shutdown()

for (begin, end), (remote, local) in found.items():
    print(f"begin {begin}, end {end}: a text begins with {remote} (remote tokenizer), {local} (local tokenizer)")
if found != {(0, 1): (1, 0), (1, 0): (1, 1)}:
    sys.exit("the behaviour has changed")
PYTHON
"$folder/venv/bin/python" "$folder/run.py" "$folder"
