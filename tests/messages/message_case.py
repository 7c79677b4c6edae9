"""A bad input, the message that it brings, and what following the message makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

Content = str | bytes

ANY = "<…>"
"""In an expected message: text of a library or of the operating system, which differs between their versions."""


class MessageCase(msgspec.Struct, frozen=True, kw_only=True):
    """One message of `krea-batch validate`, which `krea-batch run` prints as well, or instead if `only_run`.

    `files`: by name, and `args`: of the command. `message`: a line of standard error, word for word but for ANY.
    Following its advice replaces or adds `new_files`, or the arguments by `new_args`. The jobs then have these
    `prompts`. `is_notice`: the input is read in spite of the message, which is gone once its advice is followed.
    """

    message: str
    files: Mapping[str, Content] = {}
    args: str
    new_files: Mapping[str, Content] = {}
    new_args: str = ""
    prompts: tuple[str, ...] = ("a cat",)
    only_run: bool = False
    is_notice: bool = False


def line(message: str, bad: Content, good: Content, args: str = "", **changes: Any) -> MessageCase:
    """Return the case of a line of JSONL, which the advice replaces by another."""
    return file("jobs.jsonl", message, bad, good, args, **changes)


def file(name: str, message: str, bad: Content, good: Content, args: str = "", **changes: Any) -> MessageCase:
    """Return the case of a file, which the advice replaces by another."""
    return MessageCase(
        message=message, files={name: bad}, args=f"{name} {args}".strip(), new_files={name: good}, **changes
    )


def option(message: str, name: str, content: Content, args: str, new_args: str, **changes: Any) -> MessageCase:
    """Return the case of a file whose options the advice changes."""
    return MessageCase(
        message=message,
        files={name: content},
        args=f"{name} {args}".strip(),
        new_args=f"{name} {new_args}".strip(),
        **changes,
    )
