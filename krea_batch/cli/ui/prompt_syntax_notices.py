"""What is said and asked about prompts with the syntax of other tools, before anything is charged."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import click

from krea_batch.cli.ui.formatting import pluralize, say

if TYPE_CHECKING:
    from krea_batch.sources import CheckResult
    from krea_batch.sources.prompt_syntax import SyntaxFinding

_DESCRIPTIONS = {
    "dynamic": ("dynamic prompts", "--prompt-syntax dynamic expands them (--wildcards DIR for __NAME__)"),
    "a1111": ("the syntax of A1111", "--prompt-syntax a1111 reads it"),
    "midjourney": ("arguments of Midjourney", "--prompt-syntax midjourney reads --ar and --seed"),
}
_PLAIN_HINT = "--prompt-syntax plain sends prompts as they are"


def syntax_notices(checked: CheckResult) -> list[str]:
    """Return a sentence for each syntax that was recognised and not read, and one for arguments that were kept."""
    notices = [f"{each.path}:{each.line}: {_problem(each, checked)}; {_hint(each)}" for each in checked.unread_syntax]
    if checked.kept_arguments:
        names = ", ".join(checked.kept_arguments)
        notices.append(f"arguments that the API does not have were put into the metadata, not sent: {names}")
    return notices


def confirm_syntax(checked: CheckResult, options: dict[str, Any]) -> bool:
    """Ask in a terminal whether the syntax of other tools is to be sent as it is. --yes does not answer this.

    Raises InputError elsewhere, unless every job of the files is in the ledger, so that nothing new is charged.
    """
    if not checked.unread_syntax or checked.jobs <= checked.recorded:
        return True
    if options["quiet"] or options["yes"] or not (sys.stdin.isatty() and sys.stderr.isatty()):
        from krea_batch.errors import InputError

        first = checked.unread_syntax[0]
        raise InputError(
            f"{first.path}:{first.line}: {_problem(first, checked)} (nothing was submitted)",
            "; ".join(dict.fromkeys(_hint(each) for each in checked.unread_syntax)),
        )
    if click.confirm("Send these prompts as they are?", err=True):
        return True
    say("Nothing was submitted.")
    return False


def _problem(finding: SyntaxFinding, checked: CheckResult) -> str:
    rows = f"{finding.rows:,} of {pluralize(checked.rows, 'row')}"
    if finding.syntax == "separator":
        return f"{rows} would be the prompt {finding.example}, which seems to separate prompts of several lines"
    return f"{rows} with {_DESCRIPTIONS[finding.syntax][0]}, which would be sent as text: {finding.example}"


def _hint(finding: SyntaxFinding) -> str:
    if finding.syntax == "separator":
        return (
            f"--separator='{finding.example}' reads the lines between as one prompt, --lines reads each line as one"
        )
    return f"{_DESCRIPTIONS[finding.syntax][1]}, {_PLAIN_HINT}"
