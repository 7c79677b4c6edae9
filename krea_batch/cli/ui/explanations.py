"""Explanations of errors: for a message about an input, what to write instead; for a symptom, why and what to do.

`explanations.json` is generated from the cases of tests/messages and from docs/troubleshooting.md, so that errors,
documentation and `krea-batch explain` cannot differ. A message is found by its words: file names, numbers and quoted
text differ from those of the example.
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterable
from functools import cache
from importlib.metadata import metadata
from pathlib import Path

import msgspec

from krea_batch.errors import JobFileError
from krea_batch.jobs import FIELDS

EXPLANATIONS_FILE = Path(__file__).with_suffix(".json")
MAX_NAMED = 3  # chosen: more topics in one line are not read
MAX_EXAMPLES = 3  # chosen: fits on a screen
MAX_WIDTH = 100  # as the help
_TOPIC_WORDS = 4  # chosen: few messages share their first words

_FILLERS = frozenset(
    {"a", "an", "the", "is", "are", "of", "in", "to", "it", "at", "and", "with", "for", "be", "that"}
)
_LOCATION = re.compile(r"^.*?:\d+: |^(?!--)\S.*?: ")
_QUOTED = re.compile(r'"([^"]*)"')
_NOT_WORDS = re.compile(r"at character \d+|'[^']*'|\([^)]*\)|\[.*?\]|\{.*?\}|(?<!\S)\d\S*|\S*[./\\<]\S*")
_WORD = re.compile(r"[a-z]+(?:[-_][a-z\d]+)*")


class Example(msgspec.Struct, frozen=True):
    """A message, an input that brings it, and what to write instead; both are empty if they are too long."""

    message: str
    instead_of: str = ""
    write: str = ""


class Explanation(msgspec.Struct, frozen=True):
    """What is known about a topic. `page` is its place in the documentation.

    `examples`: of messages about an input. `messages`: parts of other errors, with … for what differs; `text` says
    why they occur and what to do.
    """

    topic: str
    title: str
    page: str
    examples: tuple[Example, ...] = ()
    messages: tuple[str, ...] = ()
    text: str = ""

    def lines(self) -> list[str]:
        """Return the explanation as it is printed."""
        shown = [self.title, ""]
        for example in self.examples[:MAX_EXAMPLES]:
            shown.append(example.message)
            for label, text in (("instead of:", example.instead_of), ("write:", example.write)):
                if text:
                    first, *rest = text.splitlines()
                    shown += [f"  {label:<12}{first}", *(f"{'':14}{line}" for line in rest)]
            shown.append("")
        if self.text:
            width = min(shutil.get_terminal_size().columns, MAX_WIDTH)
            shown += [*(row for line in self.text.splitlines() for row in _wrap(line, width)), ""]
        return [*shown, f"Documentation: {documentation_url()}{self.page}"]


def _wrap(line: str, width: int) -> list[str]:
    """Return a paragraph as rows of this width. Commands are indented, and stay as they are."""
    if line.startswith("    "):
        return [line]
    return textwrap.wrap(line, width, subsequent_indent="  " * line.startswith("- "), break_on_hyphens=False) or [""]


def topic_of(message: str) -> str:
    """Return the topic of a message about an input: its first words, without what differs between two such messages.

    `jobs.jsonl:7: trailing comma at character 19; remove it` has the topic `trailing-comma`.
    """
    problem, _, hint = message.partition("; ")
    return _words_of(_LOCATION.sub("", problem, count=1)) or _words_of(hint)


def _words_of(text: str) -> str:
    without_values = _QUOTED.sub(lambda match: match[1] if match[1] in FIELDS else " ", text)
    words = _WORD.findall(_NOT_WORDS.sub(" ", without_values).lower())
    return "-".join([word for word in words if word not in _FILLERS][:_TOPIC_WORDS])


@cache
def load_explanations() -> dict[str, Explanation]:
    """Return all explanations by topic, those of symptoms first."""
    found = msgspec.json.decode(EXPLANATIONS_FILE.read_bytes(), type=tuple[Explanation, ...])
    return {each.topic: each for each in found}


def find_topic(message: str) -> str | None:
    """Return the topic that explains an error; None if there is none."""
    explanations = load_explanations()
    for topic, explanation in explanations.items():
        if any(_is_in(part, message) for part in explanation.messages):
            return topic
    topic = topic_of(message)
    return topic if topic in explanations else None


def _is_in(part: str, message: str) -> bool:
    return re.search(".*".join(map(re.escape, part.split("…"))), message) is not None


def further_reading(messages: Iterable[str]) -> list[str]:
    """Return the line that ends the output of errors: the command that explains them. Empty if none is explained."""
    topics = dict.fromkeys(topic for message in messages if (topic := find_topic(message)))
    return [f"For details: krea-batch explain {' '.join([*topics][:MAX_NAMED])}"] if topics else []


def messages_of(error: Exception, shown: str) -> list[str]:
    """Return the messages that explain an error, which was `shown` in these words: those of its lines, if any."""
    return [*map(str, error.problems)] if isinstance(error, JobFileError) else [shown]


def documentation_url() -> str:
    """Return the address of the documentation as the package's metadata has it, or nothing."""
    urls = dict(entry.split(", ", 1) for entry in metadata("krea-batch").get_all("Project-URL") or ())
    url = urls.get("Documentation", "")
    return f"{url.rstrip('/')}/" if url else ""
