"""Recognises prompts that were written for another tool, and rows that are probably no prompts.

The API takes a prompt word for word, so this syntax is paid for as text. `--prompt-syntax plain` answers a false
alarm, but ordinary parentheses, brackets and punctuation must not cause one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import StrEnum

import msgspec

from krea_batch.sources.options import InputOptions, PromptSyntax

MAX_EXAMPLE_CHARS = 40  # chosen: enough to recognise the place
MAX_PATH_CHARS = 4096  # PATH_MAX of Linux


class SyntaxKind(StrEnum):
    """What is recognised in a prompt. The first three are read with `--prompt-syntax`."""

    DYNAMIC = "dynamic"
    A1111 = "a1111"
    MIDJOURNEY = "midjourney"
    PERMUTATION = "permutation"  # {red, blue} of Midjourney
    WEIGHT = "weight"  # hot:: dog::2
    PLACEHOLDER = "placeholder"  # {color} of a template
    URL = "url"
    FILE_NAME = "file_name"
    TSV_CELLS = "tsv_cells"
    CSV_CELLS = "csv_cells"
    SEPARATOR = "separator"  # lines such as ---, which separate prompts of several lines


# Word processors turn two hyphens into a dash, so Midjourney prompts are often pasted with one.
_MIDJOURNEY_NAMES = (
    "ar|aspect|chaos|c|no|quality|q|seed|stop|style|stylize|s|tile|version|v|niji|weird|w|raw|iw|sref|sw|sv|cref|cw"
    "|oref|ow|repeat|r|video|fast|relax|turbo|draft|exp|profile|p|hd|sameseed|upbeta|uplight|test|testp|creative"
)
ARGUMENT = re.compile(rf"(?:^|\s)(?:--[A-Za-z][\w-]*|[—–](?:{_MIDJOURNEY_NAMES})(?=\s|$))", re.IGNORECASE)
IMAGINE = re.compile(r"/imagine\s+(?:prompt\s*:?\s*)?", re.IGNORECASE)  # of Discord
INFO_LINE = re.compile(r"^(?:Negative prompt:|Steps: \d+,)", re.MULTILINE)
NETWORK = re.compile(r"<(?:lora|lyco|hypernet):[^<>]+>|(?<!\w)embedding:[\w./\\-]+")
WEIGHT = re.compile(
    r"\(([^()]+):\s*-?\d*\.\d+\s*\)"
    r"|\(([^()]*[^\W\d_]):\s*\d\s*\)"  # A letter before a whole number, unlike "(at 16:9)".
    r"|\(\(([^()]+)\)\s*:\s*-?(?:\d*\.)?\d+\s*\)"
)
EMPHASIS = re.compile(r"(?<![\w(])\({2,}([^()]+)\){2,}|(?<!\[)\[{2,}([^\[\]]+)\]{2,}")
ESCAPE = re.compile(r"\\([()\[\]])")
EDITING = re.compile(  # [cat:dog:0.5], [cat:0.5], [cat::10] and [cat|dog], but not [16:9], [12:30:45] or [Scene: 1]
    r"\[(?=[^\[\]]*[^\W\d_])(?:[^\[\]:]*:[^\[\]:]*:\s*\d*\.?\d+|[^\[\]:]+:\s*\d*\.\d+|[^\[\]|]+\|[^\[\]]*)\s*\]"
)
# BREAK between two parts of a prompt, but not as a text that is to be seen: the word BREAK, "BREAK", COFFEE BREAK.
BREAK = re.compile(
    r"(?<![A-Z]{2})(?<!says)(?<!saying)(?<!reads)(?<!reading)(?<!word)(?<!words)(?<!text)(?<!sign)(?<!letters)"
    r"(?<![\s,\"'“‘«])[\s,]+BREAK(?:\s*[,\n]\s*|\s+)(?=[A-Z]?[^\WA-Z]|[A-Z]\s|[(\[<{])"
)
_DYNAMIC = re.compile(r"\{[^{}]*\||\{\d{0,4}-?\d{0,4}\$\$|__[A-Za-z0-9*][\w*./-]*?__|\$\{\w+\W")
_PERMUTATION = re.compile(r"\{[^{}|:\",]+,[^{}|:\"]+\}")
_PLACEHOLDER = re.compile(
    r"(?<![\\$])\{\{?\s*(?:[^\W\d_][\w .-]{0,40}|\d{0,2})\s*\}\}?|(?<!\[)\[[A-Z][A-Z0-9 _-]{2,40}\](?!\])"
)
_A1111_ARGUMENT = re.compile(
    r"(?:^|\s)--(?:prompt|negative[_-]prompt|prompt_for_display|steps|cfg[_-]scale|sampler[_-](?:name|index)|width"
    r"|height|batch[_-]size|n_iter|restore_faces|tiling|subseed(?:_strength)?|seed_resize_from_[hw]|sd_model|styles"
    r"|outpath_(?:samples|grids)|do_not_save_(?:samples|grid))(?=[\s=]|$)"
)
_MULTI_PROMPT = re.compile(r"\S{1,30}::(?:-?\d|\s|$)")
_SEPARATOR_LINE = re.compile(r"\s*([-=*~_#])\1{2,}\s*")
_URL = re.compile(r"\s*<?(?:(?:https?|ftp|file|s3|gs|az)://|www\.|data:image/)\S+", re.IGNORECASE)
_EXTENSION = r"\.(?:png|jpe?g|webp|gif|tiff?|bmp|avif|heic|psd|mp4|mov|txt|json|csv)"
_FILE_NAME = re.compile(
    r"\s*(?:(?:[A-Za-z]:|[.~]{0,2})[/\\][^\n]*|\S+[/\\][^\n]*|(?:\S+ ){0,3}\S+)" + _EXTENSION + r"\s*", re.IGNORECASE
)
_CSV_CELLS = re.compile(r'\s*"(?:[^"]|"")*"\s*([,;])\s*(?:"(?:[^"]|"")*"|[\d.:]+)\s*(?:\1|$)')


class SyntaxFinding(msgspec.Struct, frozen=True):
    """Rows that have one syntax which no option reads: how many, and the first, with what was recognised in it.

    `syntax` is a SyntaxKind.
    """

    syntax: str
    rows: int
    path: str
    line: int
    example: str


def may_have_syntax(prompt: str) -> bool:
    """Return False if `recognise` finds nothing in a prompt. Examining every prompt takes ten times longer."""
    return (
        "-" in prompt
        or ":" in prompt
        or "{" in prompt
        or "_" in prompt
        or "[" in prompt
        or "((" in prompt
        or "—" in prompt
        or "–" in prompt
        or "\\" in prompt
        or "\t" in prompt
        or "BREAK" in prompt
        or prompt[0] in '/"'
        or prompt[:4].lower() == "www."
        or prompt[-4:-3] == "."
        or prompt[-5:-4] == "."
        or prompt[-1].isspace()
    )


def recognise(prompt: str, *, is_line: bool = False) -> Iterator[tuple[SyntaxKind, str]]:
    """Yield what the prompt seems to have, each with the text that it was recognised by.

    `is_line`: the prompt is a line of a text file, which may have the cells of a table.
    """
    if match := _URL.match(prompt):
        yield SyntaxKind.URL, _example(prompt, match)
    elif len(prompt) <= MAX_PATH_CHARS and (match := _FILE_NAME.fullmatch(prompt)):
        yield SyntaxKind.FILE_NAME, _example(prompt, match)
    if is_line:
        if "\t" in (cells := prompt.strip()):
            yield SyntaxKind.TSV_CELLS, cells[:MAX_EXAMPLE_CHARS]
        elif match := _CSV_CELLS.match(prompt):
            yield SyntaxKind.CSV_CELLS, _example(prompt, match)
    if "{" in prompt or "__" in prompt or "[" in prompt:
        yield from _braces(prompt)
    if match := _a1111_match(prompt):
        yield SyntaxKind.A1111, _example(prompt, match)
    elif match := _midjourney_match(prompt):
        yield SyntaxKind.MIDJOURNEY, _example(prompt, match)
    if "::" in prompt and not EDITING.search(prompt) and (match := _MULTI_PROMPT.search(prompt)):
        yield SyntaxKind.WEIGHT, _example(prompt, match)


def is_dynamic(prompt: str) -> bool:
    """Return whether the prompt has choices or wildcards that `dynamic_prompts` expands."""
    return ("{" in prompt or "__" in prompt) and _DYNAMIC.search(prompt) is not None


def is_placeholder(text: str) -> bool:
    """Return whether a text in braces, which are part of it, is a name."""
    return _PLACEHOLDER.fullmatch(text) is not None


def _braces(prompt: str) -> Iterator[tuple[SyntaxKind, str]]:
    if match := _DYNAMIC.search(prompt):
        yield SyntaxKind.DYNAMIC, _example(prompt, match)
    elif match := _PERMUTATION.search(prompt):
        yield SyntaxKind.PERMUTATION, _example(prompt, match)
    if match := _PLACEHOLDER.search(prompt):
        yield SyntaxKind.PLACEHOLDER, match[0]


def _a1111_match(prompt: str) -> re.Match[str] | None:
    if ":" in prompt:
        for pattern in (NETWORK, WEIGHT, INFO_LINE):
            if match := pattern.search(prompt):
                return match
    if "--" in prompt and (match := _A1111_ARGUMENT.search(prompt)):
        return match
    if "((" in prompt or "[" in prompt:
        for pattern in (EMPHASIS, EDITING):
            if match := pattern.search(prompt):
                return match
    if "\\" in prompt and (match := ESCAPE.search(prompt)):
        return match
    return BREAK.search(prompt) if "BREAK" in prompt else None


def _midjourney_match(prompt: str) -> re.Match[str] | None:
    if prompt[0] == "/" and (match := IMAGINE.match(prompt)):
        return match
    may_have_arguments = "--" in prompt or "—" in prompt or "–" in prompt
    return ARGUMENT.search(prompt) if may_have_arguments else None


def _example(prompt: str, match: re.Match[str]) -> str:
    start = match.start() + (len(match[0]) - len(match[0].lstrip(" ,\t\r\n")))
    return prompt[start : start + MAX_EXAMPLE_CHARS].splitlines()[0]


class SyntaxCounter:
    """Counts the rows of a check whose prompts have a syntax that no option reads."""

    def __init__(self, options: InputOptions) -> None:
        self.is_off = PromptSyntax.PLAIN in options.prompt_syntax
        self.first_rows: dict[str, tuple[int, str]] = {}  # by syntax: number and example
        self._counts: dict[str, int] = {}
        self._expects_separators = options.text_unit is None and not options.separator

    def add(self, number: int, prompt: str, *, is_line: bool) -> None:
        """Count the row for each syntax in its prompt. `is_line`: the prompt is a line of a text file."""
        if is_line and self._expects_separators and _SEPARATOR_LINE.fullmatch(prompt):
            self._count(number, SyntaxKind.SEPARATOR, prompt.strip())
        else:
            for syntax, example in recognise(prompt, is_line=is_line):
                self._count(number, syntax, example)

    def finding(self, syntax: str, path: str, line: int) -> SyntaxFinding:
        """Return the finding of a syntax in `first_rows`, whose first row is at this place."""
        return SyntaxFinding(syntax, self._counts[syntax], path, line, self.first_rows[syntax][1])

    def _count(self, number: int, syntax: str, example: str) -> None:
        self._counts[syntax] = self._counts.get(syntax, 0) + 1
        self.first_rows.setdefault(syntax, (number, example))
