"""How far job files have been read comes in; a mark that a later run can compare with its files goes out.

Newcomers: a mark is kept only where every line before it was good and its job is on record with this very content. A
run that finds the same bytes again need not look at each of a million lines. Where anything differs, it looks at all
of them, as if there had been no mark.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from krea_batch.sources.formats.line_file import FilePosition, LineFile
from krea_batch.sources.inputs import Input
from krea_batch.sources.options import Format


class FilePrefix(msgspec.Struct, frozen=True):
    """The begin of one file: its text's size in bytes and SHA-256, how many lines end there, and its format."""

    size_bytes: int
    sha256: str
    lines: int
    format: Format


class Checkpoint(msgspec.Struct, frozen=True):
    """How far files have been read, the last of them perhaps in part; how many rows and jobs they hold up to there.

    `reading` is the fingerprint of how they are read.
    """

    prefixes: tuple[FilePrefix, ...]
    rows: int
    jobs: int
    options_fingerprint: str

    @property
    def lines(self) -> int:
        """The running number of the last line before it."""
        return sum(prefix.lines for prefix in self.prefixes)

    @property
    def positions(self) -> list[FilePosition]:
        """For each of these files where it ends in it."""
        return [FilePosition(prefix.size_bytes, prefix.lines) for prefix in self.prefixes]

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Checkpoint | None:
        """None for what is no bookmark of ours."""
        try:
            return msgspec.json.decode(data, type=cls)
        except msgspec.DecodeError:
            return None

    def matches(self, inputs: Sequence[Input]) -> bool:
        """Whether these files begin with the same bytes; all but the last of its files end there, too."""
        if len(self.prefixes) > len(inputs):
            return False
        last_index = len(self.prefixes) - 1
        return all(
            each.format is prefix.format and _begins_with(each.file, prefix, whole=index < last_index)
            for index, (each, prefix) in enumerate(zip(inputs, self.prefixes, strict=False))
        )


EMPTY = Checkpoint((), 0, 0, "")


def _begins_with(file: LineFile, prefix: FilePrefix, *, whole: bool) -> bool:
    digest, remaining = hashlib.sha256(), prefix.size_bytes
    for block in file.blocks():
        if remaining == 0:
            return not whole and digest.hexdigest() == prefix.sha256
        digest.update(block[:remaining])
        if whole and len(block) > remaining:
            return False
        remaining -= min(remaining, len(block))
    return remaining == 0 and digest.hexdigest() == prefix.sha256
