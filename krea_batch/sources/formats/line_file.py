"""The path of a job file comes in; its numbered lines go out, as often as asked, and the same each time.

Newcomers: the first reading remembers a checksum of each block, and later readings compare before they give out
a line of that block. So a file that is edited while a run of many hours works through it is noticed before an
unchecked line is paid for, and a file that was only touched is not refused.
"""

from __future__ import annotations

import gzip
import hashlib
import sys
import zlib
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from io import SEEK_END, BufferedReader
from pathlib import Path
from types import ModuleType
from typing import IO, BinaryIO, NamedTuple, cast

from krea_batch.errors import InputError

MAX_LINE_BYTES = 1 << 20
"""Chosen: the same 1 MiB that answers of the gateway may have. The longest sensible prompt is a hundredth of it,
and a file that is not made of lines is noticed before it fills the memory."""

BLOCK_BYTES = 1 << 18  # benchmarks/validate.py: larger blocks gain nothing, and cost memory

OnBlock = Callable[[int, int, str], None]
"""Hears how many lines have ended, and size and SHA-256 of the text so far, once all of these lines were taken."""

_BOM = b"\xef\xbb\xbf"
_GZIP = b"\x1f\x8b"
_ZSTD = b"\x28\xb5\x2f\xfd"  # RFC 8878, section 3.1.1
_UTF_16 = (b"\xff\xfe", b"\xfe\xff")
_UTF_8_HINT = "save it as UTF-8"


class FilePosition(NamedTuple):
    """How far a text was read: its first bytes, and how many lines end in them."""

    size_bytes: int
    lines: int


FILE_START = FilePosition(0, 0)


class LineFile:
    """One job file. `name` stands in problems; `spooled` is its content where the path can be read only once.

    Lines are counted from 1, blank ones too. `line_count` is known after the first whole reading. Readings of
    one file come one after another, never interleaved.
    """

    def __init__(self, name: str, spooled: BinaryIO | None = None) -> None:
        self.name = name
        self.line_count = 0
        self.read_bytes = 0
        self._spooled = spooled
        self._spooled_bytes = spooled.seek(0, SEEK_END) if spooled else 0
        self._checksums: array[int] | None = None
        self._head_checksums: list[int] = []  # checksums of the blocks that `blocks` has given

    def close(self) -> None:
        """Forget a spooled copy. Nothing else is open between readings."""
        if self._spooled:
            self._spooled.close()

    def size_bytes(self) -> int:
        """Bytes on disk, to measure progress by; 0 where that cannot be known."""
        if self._spooled:
            return self._spooled_bytes
        try:
            return Path(self.name).stat().st_size
        except (OSError, ValueError):
            return 0

    def lines(self, on_block: OnBlock | None = None, after: FilePosition = FILE_START) -> Iterator[tuple[int, bytes]]:
        """Give each line that is not blank and ends after a place, with its number, without its newline.

        A line longer than MAX_LINE_BYTES comes cut, but still longer than that, so that it is known by its length.
        Raises InputError where the file cannot be read, is not UTF-8 by its first bytes, or has changed.
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
        if on_block and not rest:  # a last line without its end may yet become another one
            on_block(number, size_bytes, digest.hexdigest())

    def text(self) -> Iterator[bytes]:
        """The text in blocks, each proven to be the one of the first reading. Raises as `lines`."""
        yield from self._text(self._verified_blocks())

    def raw_blocks(self) -> Iterator[bytes]:
        """The same for what is no text."""
        yield from self._verified_blocks()

    def head(self) -> bytes:
        """The first block, to tell the format by. Raises as `lines`, but for what is no UTF-8."""
        return next(self._blocks(), b"").removeprefix(_BOM)

    def blocks(self) -> Iterator[bytes]:
        """The text in blocks, as many as are taken; `lines` proves later that these were the same. Raises as it."""
        yield from self._text(self._recorded_blocks())

    def _text(self, blocks: Iterator[bytes]) -> Iterator[bytes]:
        """The blocks without a byte order mark."""
        first = next(blocks, b"")
        if first.startswith(_UTF_16) or b"\0" in first[:2]:
            raise InputError(f"{self.name}: it is UTF-16", _UTF_8_HINT)
        yield first.removeprefix(_BOM)
        yield from blocks

    def _verified_blocks(self) -> Iterator[bytes]:
        """The blocks, each proven to be the one that was read the first time."""
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
        with _as_input_errors(self.name), self._opened() as file:
            stream = _decompressed(self.name, file)
            while block := stream.read(BLOCK_BYTES):
                self.read_bytes = file.tell()
                yield block

    @contextmanager
    def _opened(self) -> Iterator[BufferedReader]:
        if self._spooled:
            self._spooled.seek(0)
            yield cast("BufferedReader", self._spooled)
            return
        with Path(self.name).open("rb") as file:
            yield file

    def _changed_error(self) -> InputError:
        return InputError(
            f"{self.name}: it has changed since it was checked",
            "start again with the same --out; what is on record is not paid again",
        )


def _skip_prefix(size_bytes: int, rest: bytes, block: bytes) -> tuple[bytes, bytes]:
    """What of `rest` and the first bytes of a block is a line without its end yet; the other bytes of the block."""
    if size_bytes <= 0:
        return rest, block
    partial_line = (rest + block[:size_bytes]).rpartition(b"\n")[2]
    return partial_line[: MAX_LINE_BYTES + 1], block[size_bytes:]


def _decompressed(name: str, file: BufferedReader) -> IO[bytes]:
    """What is in a packed file, by its first bytes, or the file itself."""
    magic = file.peek(4)[:4]
    if magic.startswith(_GZIP):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=file))
    if magic == _ZSTD:
        return _decompress_zstd(name, file)
    for suffix, compression in ((".gz", "gzip"), (".zst", "Zstandard")):
        if name.endswith(suffix):
            raise InputError(f"{name}: it is not a {compression} file", f"take the {suffix} off its name, or pack it again")
    return file


def _decompress_zstd(name: str, file: BufferedReader) -> IO[bytes]:
    try:
        zstd = import_module("compression.zstd" if sys.version_info >= (3, 14) else "backports.zstd")
    except ImportError:
        raise InputError(f"{name}: it is packed with Zstandard", "pip install 'krea-batch[zst]'") from None
    return cast("IO[bytes]", _ZstdReader(zstd, file))


class _ZstdReader:
    """Reads a Zstandard file, and says what is wrong with it as the system does."""

    def __init__(self, zstd: ModuleType, file: BufferedReader) -> None:
        self._file = zstd.ZstdFile(file)
        self._error: type[Exception] = zstd.ZstdError

    def read(self, size: int) -> bytes:
        try:
            block: bytes = self._file.read(size)
        except self._error as error:
            raise zlib.error(str(error)) from None
        return block


def _checksum(block: bytes) -> int:
    return zlib.crc32(block) << 32 | len(block)


@contextmanager
def _as_input_errors(name: str) -> Iterator[None]:
    """Turn what the system says into an InputError that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise InputError(f"{name}: there is no such file", "check the path") from error
    except IsADirectoryError as error:
        raise InputError(f"{name}: it is a folder", "name the job files in it") from error
    except PermissionError as error:
        raise InputError(f"{name}: it may not be read", "check its permissions") from error
    except EOFError as error:
        raise InputError(f"{name}: its packed data ends too early", "copy or pack it again") from error
    except (gzip.BadGzipFile, zlib.error) as error:
        raise InputError(f"{name}: its packed data is damaged ({error})", "copy or pack it again") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise InputError(f"{name}: it cannot be read ({reason})", "check the path and the disk") from error
