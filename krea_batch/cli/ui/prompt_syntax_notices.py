"""Notices and questions about prompts for other tools, and about rows that are no prompts, before any charge."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from krea_batch.cli.ui.formatting import pluralize, say

if TYPE_CHECKING:
    from krea_batch.sources import CheckResult
    from krea_batch.sources.prompt_recognition import SyntaxFinding

_PERMUTATION_HINT = "write {red|blue} with --prompt-syntax dynamic, or a row for each"
_PLACEHOLDER_HINT = (
    "--prompt-template 'a {color} kite' fills in the columns of a table, or values of --sweep color=red,blue"
)
_URL_HINT = "write what the image shows, and put images that show a style into image_style_references"
_CELLS_HINT = "--no-header reads the first cell as the prompt, and --prompt-column 2 the second"
_SEPARATOR_HINT = "--separator='{}' reads the lines between as one prompt, --lines reads each line as one"

# The keys are those of krea_batch.sources.prompt_recognition.SyntaxKind, which is slow to import.
_DESCRIPTIONS = {
    "dynamic": ("dynamic prompts", "--prompt-syntax dynamic expands them (with --wildcards DIR for __NAME__)"),
    "a1111": ("the syntax of A1111", "--prompt-syntax a1111 reads it"),
    "midjourney": ("arguments of Midjourney", "--prompt-syntax midjourney reads --ar and --seed"),
    "permutation": ("permutations of Midjourney", _PERMUTATION_HINT),
    "weight": ("weights (::), which the API does not have", "write the prompt without them"),
    "placeholder": ("a placeholder", _PLACEHOLDER_HINT),
    "url": ("a URL, which the API does not open", _URL_HINT),
    "file_name": ("the name of a file, which the API does not open", "write what the image shows"),
    "tsv_cells": ("several cells of a table", f"--input-format tsv {_CELLS_HINT}"),
    "csv_cells": ("several cells of a table", f"--input-format csv {_CELLS_HINT}"),
    "separator": ("a line that seems to separate prompts of several lines", _SEPARATOR_HINT),
}


def syntax_notices(checked: CheckResult) -> list[str]:
    """Return a sentence for each syntax that was recognised and not read, and one for arguments that were kept."""
    notices = [
        f"{each.path}:{each.line}: {_rows(each, checked)}, which would be sent as text: {each.example}; {_hint(each)}"
        for each in checked.unread_syntax
    ]
    if checked.kept_arguments:
        names = ", ".join(checked.kept_arguments)
        notices.append(f"arguments that the API does not have were put into the metadata, not sent: {names}")
    return notices


def confirm_syntax(checked: CheckResult, options: dict[str, Any]) -> bool:
    """Ask in a terminal whether to send the syntax of other tools as it is. --yes does not answer this question.

    Raises InputError elsewhere, unless every job of the files is in the ledger, so that nothing new is charged.
    """
    if not checked.unread_syntax or checked.jobs <= checked.recorded:
        return True
    if options["quiet"] or options["yes"] or not (sys.stdin.isatty() and sys.stderr.isatty()):
        from krea_batch.errors import InputError

        first = checked.unread_syntax[0]
        problem = f"nothing was submitted, since {_rows(first, checked)}"
        raise InputError(f"{first.path}:{first.line}: {problem}", _hint(*checked.unread_syntax))
    if click.confirm("Send these prompts as they are?", err=True):
        return True
    say("Nothing was submitted.")
    return False


def _rows(finding: SyntaxFinding, checked: CheckResult) -> str:
    has = "has" if finding.rows == 1 else "have"
    return f"{finding.rows:,} of {pluralize(checked.rows, 'row')} {has} {_DESCRIPTIONS[finding.syntax][0]}"


def _hint(*findings: SyntaxFinding) -> str:
    """Return the options that read what was found, and the one that sends it as it is."""
    hints = [
        _SEPARATOR_HINT.format(each.example) if each.syntax == "separator" else _DESCRIPTIONS[each.syntax][1]
        for each in findings
    ]
    if any(each.syntax != "separator" for each in findings):
        hints.append("--prompt-syntax plain sends prompts as they are")
    return ", ".join(hints)
