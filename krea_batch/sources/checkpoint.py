"""Checkpoints: how far job files have been read, so that a later run can skip those lines.

A checkpoint is stored only if every line before it was valid and its job is in the ledger with the same content. A
later run skips these lines if the files still begin with the same bytes. Otherwise, it reads all lines.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from krea_batch.sources.formats.line_file import FilePosition, LineFile
from krea_batch.sources.inputs import Input
from krea_batch.sources.options import Format


class FilePrefix(msgspec.Struct, frozen=True):
    """The beginning of one file: size and SHA-256 of its text, the number of lines that end there, and the format."""

    size_bytes: int
    sha256: str
    lines: int
    format: Format


class Checkpoint(msgspec.Struct, frozen=True):
    """How far files have been read, the last perhaps in part, and how many rows and jobs they hold up to there.

    `options_fingerprint` identifies the input options.
    """

    prefixes: tuple[FilePrefix, ...]
    rows: int
    jobs: int
    options_fingerprint: str

    @property
    def lines(self) -> int:
        """The running number of the last line before the checkpoint."""
        return sum(prefix.lines for prefix in self.prefixes)

    @property
    def positions(self) -> list[FilePosition]:
        """The position of the checkpoint in each of its files."""
        return [FilePosition(prefix.size_bytes, prefix.lines) for prefix in self.prefixes]

    def encode(self) -> bytes:
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> Checkpoint | None:
        """Return the decoded checkpoint, or None if the data is not a checkpoint."""
        try:
            return msgspec.json.decode(data, type=cls)
        except msgspec.DecodeError:
            return None

    def matches(self, inputs: Sequence[Input]) -> bool:
        """Return whether these files begin with the same bytes, and all but the last of them also end there."""
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
