"""Reads the numbered lines of a job file, as often as needed and with the same content each time.

The first reading records a checksum of each block, and later readings compare before they yield a line of that
block. So a file that is edited during a run of many hours is noticed before an unchecked line is submitted and
charged, while a file of which only the timestamp changed is accepted.
"""

from __future__ import annotations

import gzip
import hashlib
import sys
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from io import SEEK_END, BufferedReader
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import IO, BinaryIO, NamedTuple, cast

from krea_batch.errors import InputError
from krea_batch.sources.formats.encoding import UTF_8, find_encoding, has_cr_line_ends, to_utf_8

MAX_LINE_BYTES = 1 << 20
"""Chosen: 1 MiB, as for gateway responses. Sensible prompts are less than a hundredth of it, and a file without line
ends is noticed before it fills the memory."""

SIMILARITY = 0.8  # chosen: a letter more or less, but not another name with the same extension
BLOCK_BYTES = 1 << 18  # benchmarks/validate.py: larger blocks are not faster and take more memory

OnBlock = Callable[[int, int, str], None]
"""Called with the number of lines consumed, and the size in bytes and SHA-256 of the text that they end."""

_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"  # RFC 8878, section 3.1.1


class FilePosition(NamedTuple):
    """A position in a file: the size of the text before it in bytes, and the number of lines that end before it."""

    size_bytes: int
    lines: int


FILE_START = FilePosition(0, 0)


class LineFile:
    """One job file. `name` is used in problems; `spooled` is the content of a path that can be read only once.

    Lines are numbered from 1, including blank ones. `line_count` is known after the first complete reading. A file is
    read by one reader at a time. `encoding`: empty for UTF-8; a byte order mark takes precedence. `notices` says how
    the text was converted. `mixes_line_ends`: a text whose lines end with CR also has LF.
    """

    def __init__(self, name: str, spooled: BinaryIO | None = None) -> None:
        self.name = name
        self.line_count = 0
        self.read_bytes = 0
        self.encoding = ""
        self.notices: list[str] = []
        self.mixes_line_ends = False
        self._open_file: BufferedReader | None = None  # an error keeps it open as long as its traceback is kept
        self._spooled = spooled
        self._spooled_bytes = spooled.seek(0, SEEK_END) if spooled else 0
        self._checksums: array[int] | None = None
        self._head_checksums: list[int] = []  # checksums of the blocks that `blocks` has yielded

    def close(self) -> None:
        """Close a spooled copy, and the file of a reading that an error ended."""
        for file in (self._spooled, self._open_file):
            if file:
                file.close()

    @property
    def is_spooled(self) -> bool:
        """Whether it is a pipe or standard input, whose name says nothing about its content."""
        return self._spooled is not None

    def size_bytes(self) -> int:
        """Return the size on disk in bytes, for progress; 0 if unknown."""
        if self._spooled:
            return self._spooled_bytes
        try:
            return Path(self.name).stat().st_size
        except (OSError, ValueError):
            return 0

    def lines(self, on_block: OnBlock | None = None, after: FilePosition = FILE_START) -> Iterator[tuple[int, bytes]]:
        """Yield each non-blank line that ends after a position, with its number and without its newline.

        A line longer than MAX_LINE_BYTES is truncated but stays longer than that, so the caller can reject it. Raises
        InputError if the file cannot be read or decoded, or has changed.
        """
        number = size_bytes = 0
        digest = hashlib.sha256()
        rest = b""
        for block in self._text(self._verified_blocks()):
            if on_block:
                if number:
                    on_block(number, size_bytes, digest.hexdigest())
                digest.update(block)
            rest, data = _skip_prefix(after.size_bytes - size_bytes, rest, block)
            size_bytes += len(block)
            if size_bytes < after.size_bytes:
                continue
            number = max(number, after.lines)
            parts = data.split(b"\n")
            parts[0] = rest + parts[0]
            rest = parts.pop()[: MAX_LINE_BYTES + 1]
            for line in parts:
                number += 1
                if line and (not line.isspace() or len(line) > MAX_LINE_BYTES):
                    yield number, line
        if rest:
            number += 1
            if not rest.isspace() or len(rest) > MAX_LINE_BYTES:
                yield number, rest
        self.line_count = number
        if on_block and not rest:  # a last line without a newline may still grow
            on_block(number, size_bytes, digest.hexdigest())

    def text(self) -> Iterator[bytes]:
        """Yield the text in blocks, each verified against the first reading. Raises like `lines`."""
        yield from self._text(self._verified_blocks())

    def raw_blocks(self) -> Iterator[bytes]:
        """Yield binary content in blocks, each verified against the first reading. Raises like `lines`."""
        yield from self._verified_blocks()

    def raw_head(self) -> bytes:
        """Return the first block, to detect a binary format. Raises like `raw_blocks`."""
        return next(self._blocks(), b"")

    def head(self) -> bytes:
        """Return the first block of the text, to detect the format. Raises like `lines`."""
        return next(self._text(self._blocks()), b"")

    def blocks(self) -> Iterator[bytes]:
        """Yield the text in blocks, not yet verified; `lines` verifies later that they were the same."""
        yield from self._text(self._recorded_blocks())

    def _text(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """Yield the text of the blocks as UTF-8 without a byte order mark. Line ends of CR alone become LF."""
        first = next(blocks, b"")
        encoding, mark_bytes = find_encoding(first, self.encoding, self.name)
        first = first[mark_bytes:]
        if encoding != UTF_8:
            blocks = to_utf_8(chain([first] if first else [], blocks), encoding, self.name, self._add_notice)
            first = next(blocks, b"")
        if not has_cr_line_ends(first):
            yield first
            yield from blocks
            return
        self._add_notice("lines end with CR, as old Macs write them")
        for block in chain([first], blocks):
            self.mixes_line_ends = self.mixes_line_ends or b"\n" in block
            yield block.replace(b"\r", b"\n")

    def _add_notice(self, notice: str) -> None:
        if notice not in self.notices:
            self.notices.append(notice)

    def _verified_blocks(self) -> Iterator[bytes]:
        """Yield the blocks, each verified against the first reading."""
        expected = self._checksums
        checksums = array("Q")
        for block in self._blocks():
            checksum = _checksum(block)
            if expected is not None and (len(checksums) >= len(expected) or expected[len(checksums)] != checksum):
                raise self._changed_error()
            if len(checksums) < len(self._head_checksums) and self._head_checksums[len(checksums)] != checksum:
                raise self._changed_error()
            checksums.append(checksum)
            yield block
        if expected is None:
            self._checksums = checksums
        elif len(checksums) != len(expected):
            raise self._changed_error()

    def _recorded_blocks(self) -> Iterator[bytes]:
        self._head_checksums = []
        for block in self._blocks():
            self._head_checksums.append(_checksum(block))
            yield block

    def _blocks(self) -> Iterator[bytes]:
        with as_input_errors(self.name), self._open_for_read() as file:
            stream = _decompressed(self.name, file)
            while block := stream.read(BLOCK_BYTES):
                self.read_bytes = file.tell()
                yield block

    @contextmanager
    def _open_for_read(self) -> Iterator[BufferedReader]:
        if self._spooled:
            self._spooled.seek(0)
            yield cast("BufferedReader", self._spooled)
            return
        with Path(self.name).open("rb") as file:
            self._open_file = file
            yield file

    def _changed_error(self) -> InputError:
        return InputError(
            f"{self.name}: changed since it was checked",
            "run again with the same --out; submitted jobs are not submitted again",
        )


def _skip_prefix(size_bytes: int, rest: bytes, block: bytes) -> tuple[bytes, bytes]:
    """Return the unfinished line after `size_bytes` have been skipped, and the other bytes of the block."""
    if size_bytes <= 0:
        return rest, block
    partial_line = (rest + block[:size_bytes]).rpartition(b"\n")[2]
    return partial_line[: MAX_LINE_BYTES + 1], block[size_bytes:]


def _decompressed(name: str, file: BufferedReader) -> IO[bytes]:
    """Return the decompressed content of a file, detected by its first bytes, or the file itself."""
    magic = file.peek(4)[:4]
    if magic.startswith(_GZIP):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=file))
    if magic == _ZSTD:
        return _decompress_zstd(name, file)
    for suffix, compression in ((".gz", "gzip"), (".zst", "Zstandard")):
        if name.endswith(suffix):
            raise InputError(
                f"{name}: not a {compression} file", f"remove {suffix} from its name, or compress it again"
            )
    return file


def _decompress_zstd(name: str, file: BufferedReader) -> IO[bytes]:
    try:
        zstd = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    except ImportError:
        raise InputError(
            f"{name}: reading Zstandard files requires an extra", "pip install 'krea-batch[zst]'"
        ) from None
    return cast("IO[bytes]", _ZstdReader(zstd, file))


class _ZstdReader:
    """Reads a Zstandard file, and reports damage as OSError and EOFError like gzip."""

    def __init__(self, zstd: ModuleType, file: BufferedReader) -> None:
        self._file = zstd.ZstdFile(file)
        self._error: type[Exception] = zstd.ZstdError

    def read(self, size: int) -> bytes:
        try:
            block: bytes = self._file.read(size)
        except self._error as error:
            raise zlib.error(str(error)) from None
        return block


def _hint_for_missing(name: str) -> str:
    """Return what may have been meant by the name of a file that is not there."""
    path = Path(name)
    if any(char in path.name for char in "*?["):
        return "no file matches the pattern; check it, and its directory"
    if path.is_symlink():
        return f"it is a link to {path.readlink()}"
    if not path.parent.is_dir():
        return "check the path"
    close = get_close_matches(path.name, [each.name for each in path.parent.iterdir()], 1, SIMILARITY)
    return f"did you mean {path.with_name(close[0])}?" if close else "check the path"


def _checksum(block: bytes) -> int:
    return zlib.crc32(block) << 32 | len(block)


@contextmanager
def as_input_errors(name: str) -> Iterator[None]:
    """Convert errors of the operating system to InputError with the name of the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{name}: there is no such file", _hint_for_missing(name)) from error
    except IsADirectoryError as error:
        raise InputError(f"{name}: is a directory", "name the job files in it") from error
    except PermissionError as error:
        raise InputError(f"{name}: permission denied", "check its permissions") from error
    except EOFError as error:
        raise InputError(f"{name}: the compressed data is truncated", "copy or compress it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{name}: the compressed data is damaged ({error})", "copy or compress it again") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{name}: cannot be read ({reason})", "check the path and the disk") from error
