"""The explanations of `krea-batch explain`: each message about an input, and each section on a symptom.

`make generate` writes them into the package: `python -m docs.explanations > krea_batch/cli/ui/explanations.json`.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec

from docs.generated import cases_by_topic, change_of
from krea_batch.cli.ui.explanations import Example, Explanation

TROUBLESHOOTING = Path(__file__).with_name("troubleshooting.md")
_SECTION = re.compile(r"^## (.+?) \{#([\w-]+)\}$", re.MULTILINE)
_MESSAGES = re.compile(r"\A\s*```text\n(.*?)```\n", re.DOTALL)
_LINK_TO_SYMPTOM = re.compile(r"\[([^]]+)]\(#([\w-]+)\)")
_LINK = re.compile(r"\[([^]]+)]\([^)]+\)")
_WRAPPED = re.compile(r"(?<=\S)\n(?! {4}|- |\n) *")
_FENCED = re.compile(r"^```\w*\n(.*?)^```\n", re.DOTALL | re.MULTILINE)


def explanations_json() -> str:
    """Return all explanations, one a line."""
    lines = [json.dumps(msgspec.to_builtins(each), ensure_ascii=False) for each in (*_symptoms(), *_messages())]
    return "[\n" + ",\n".join(lines) + "\n]\n"


def _symptoms() -> Iterator[Explanation]:
    """Yield the sections of the page on troubleshooting. One may begin with the messages that it explains."""
    _, *parts = _SECTION.split(TROUBLESHOOTING.read_text("utf-8"))
    for title, topic, body in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        found = _MESSAGES.match(body)
        messages = tuple(found[1].splitlines()) if found else ()
        text = body[found.end() :] if found else body
        yield Explanation(topic, _plain(title), f"troubleshooting.html#{topic}", messages=messages, text=_plain(text))


def _plain(markdown: str) -> str:
    """Return Markdown as text for a terminal: a line a paragraph, commands indented, links as their texts."""
    text = _FENCED.sub(lambda match: re.sub(r"^(?=.)", "    ", match[1], flags=re.MULTILINE), markdown)
    text = _WRAPPED.sub(" ", text)
    text = _LINK_TO_SYMPTOM.sub(r"\1 (krea-batch explain \2)", text)
    return _LINK.sub(r"\1", text).replace("**", "").replace("`", "").strip()


def _messages() -> Iterator[Explanation]:
    for topic, (heading, cases) in cases_by_topic().items():
        examples = tuple(Example(case.message.replace("<…>", "…"), *change_of(case)) for case in cases)
        yield Explanation(topic, heading, f"reference/messages.html#{topic}", examples)


if __name__ == "__main__":
    sys.stdout.write(explanations_json())
