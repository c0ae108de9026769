"""Renders the templates of this folder with Jinja, set up as transformers sets it up: `python render.py` (pip: jinja2)."""

import json
from datetime import datetime
from pathlib import Path

import jinja2
import jinja2.ext
from jinja2.sandbox import ImmutableSandboxedEnvironment


class Generation(jinja2.ext.Extension):
    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        call = self.call_method("_said")
        return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _said(self, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


environment = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
)
environment.filters["tojson"] = tojson
environment.globals["raise_exception"] = raise_exception
environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)

here = Path(__file__).parent
chats = json.loads((here / "chats.json").read_text())
for path in sorted(here.glob("*.jinja")):
    template = environment.from_string(path.read_text())
    for name, messages in chats.items():
        names = {"messages": messages, "tools": None, "documents": None, "add_generation_prompt": True}
        try:
            text = template.render(**names, bos_token="<s>", eos_token="</s>")
        except jinja2.exceptions.TemplateError as error:
            text = f"refused: {error}"
        (here / f"{path.stem}.{name}.txt").write_text(text)
