"""Reads the list items of a Markdown file as prompts, with the parser that rich brings along.

Everything that is not a list item is left out, and counted in a notice: headings, paragraphs, tables, code.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import msgspec

from krea_batch.errors import InputError, JobError
from krea_batch.sources.formats.encoding import OnNotice
from krea_batch.sources.formats.json_document import read_text
from krea_batch.sources.formats.line_file import LineFile

MAX_MARKDOWN_BYTES = 1 << 25  # chosen: as for YAML, since it is parsed as a whole
_CHECK_BOX = re.compile(r"\A\[[ xX]\]\s+")
_PLAIN = ("text", "softbreak", "hardbreak")


class _Item(msgspec.Struct):
    """A list item and what is in it. `inline` has the tokens of its paragraphs."""

    first_line: int
    inline: list[Any] = []
    has_list: bool = False
    has_block: bool = False


def rows(file: LineFile, on_notice: OnNotice) -> Iterator[tuple[int, dict[str, Any] | JobError]]:
    """Yield a prompt for each list item, numbered by its line."""
    from markdown_it import MarkdownIt

    text = read_text(file, MAX_MARKDOWN_BYTES)
    lines = text.splitlines()
    tokens = MarkdownIt("commonmark").parse(text)
    items = [item for item in _items(tokens) if item.inline or item.has_list or item.has_block]
    if not items:
        hint = "write each prompt as a list item (- a prompt), or save the file as .txt with one prompt per line"
        raise InputError(f"{file.name}: a Markdown file without list items", hint)
    on_notice(f"read as Markdown: each list item is a prompt{_left_out(tokens, lines)}")
    boxes = [item for item in items if item.inline and _CHECK_BOX.match(item.inline[0].content)]
    if boxes:
        count = f"{len(boxes):,} item{'s' * (len(boxes) > 1)}"
        on_notice(f"check boxes are not part of the prompts ({count}), and ticked items are read, too")
    marked_up = [item for item in items if any(child.type not in _PLAIN for child in _children(item))]
    if marked_up:
        first = marked_up[0].first_line
        on_notice(
            f"prompts that keep their Markdown, such as **bold**: {len(marked_up):,}, the first in line {first}"
        )
    for item in items:
        yield item.first_line, _row(item, lines)


def _items(tokens: list[Any]) -> list[_Item]:
    """Return all list items in the order of their lines."""
    found: list[_Item] = []
    open_items: list[_Item] = []
    for token in tokens:
        if token.type == "list_item_open":
            if open_items:
                open_items[-1].has_list = True
            open_items.append(_Item(token.map[0] + 1))
            found.append(open_items[-1])
        elif token.type == "list_item_close":
            open_items.pop()
        elif open_items and token.type == "inline":
            open_items[-1].inline.append(token)
        elif open_items and token.type in ("fence", "code_block", "html_block", "heading_open", "blockquote_open"):
            open_items[-1].has_block = True
    return found


def _row(item: _Item, lines: list[str]) -> dict[str, Any] | JobError:
    if item.has_list:
        return JobError("the item has a list of its own", "make it a heading (# …), and move its items to the left")
    if item.has_block:
        return JobError("the item has a heading, a quotation or code in it", "write the prompt as plain text")
    for token in item.inline:
        for line in range(token.map[0] + 1, token.map[1]):
            if not lines[line][:1].isspace():
                problem = f"line {line + 1} continues the item, but is not indented"
                return JobError(problem, "indent it if it belongs to the prompt, else put an empty line before it")
    paragraphs = (" ".join(map(str.strip, token.content.splitlines())) for token in item.inline)
    return {"prompt": _CHECK_BOX.sub("", "\n\n".join(paragraphs))}


def _children(item: _Item) -> list[Any]:
    return [child for token in item.inline for child in token.children]


def _left_out(tokens: list[Any], lines: list[str]) -> str:
    in_items = {n for token in tokens if token.type == "list_item_open" for n in range(*token.map)}
    others = [n + 1 for n, line in enumerate(lines) if line.strip() and n not in in_items]
    if not others:
        return ""
    return f"; left out {len(others):,} other line{'s' * (len(others) > 1)}, the first is line {others[0]}"
