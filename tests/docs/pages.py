"""The pages of the documentation, their code blocks and tables."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
PAGES = {path.relative_to(ROOT / "docs").as_posix(): path.read_text("utf-8") for path in ROOT.glob("docs/**/*.md")}
_BLOCK = re.compile(r"^( *)```(\w+)[^\n]*\n(.*?)^\1```$", re.DOTALL | re.MULTILINE)


class Block(NamedTuple):
    """A code block: its page, its number on the page, and its text."""

    page: str
    number: int
    text: str

    @property
    def name(self) -> str:
        """A name that is valid for files and modules."""
        return f"{re.sub(r'[^a-z]', '_', self.page.removesuffix('.md'))}_{self.number}"


def code_blocks(language: str) -> list[Block]:
    """Return the code blocks of one language, except those that include another file."""
    found: list[Block] = []
    for page, text in PAGES.items():
        texts = [
            each
            for _, block_language, each in _BLOCK.findall(text)
            if block_language == language and "--8<--" not in each
        ]
        found += [Block(page, number, textwrap.dedent(each)) for number, each in enumerate(texts)]
    return found


def table_rows(page: str, heading: str = "") -> list[list[str]]:
    """Return the cells of each row that begins with a name in backticks, below `heading` if it is given."""
    text = PAGES[page]
    if heading:
        text = text.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in text.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines]


def names_in_backticks(cell: str) -> list[str]:
    """Return the names in backticks in a cell."""
    return re.findall(r"`([^`]+)`", cell)
