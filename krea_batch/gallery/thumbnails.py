"""Makes WebP thumbnails of images."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from os import cpu_count
from pathlib import Path
from threading import Lock, Semaphore

from PIL import Image

WIDTH_PX = 240  # chosen: sharp at the size shown by the page; about 6 kB each
WEBP_QUALITY = 70
REDUCING_GAP = 1.0  # chosen: a third of the time of 3.0, without a visible difference at this size
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "AVIF")  # Pillow would run other programs for some further formats
# A PNG of half a megabyte can have 170 million pixels, which take 1.4 GB. Pillow itself raises only above those.
MAX_PIXELS = 4096 * 4096  # chosen: several times the size of an image of the API; takes 130 MB
MAX_CACHED = 2000  # chosen: about 12 MB


def thumbnail(path: Path, width_px: int = WIDTH_PX) -> bytes | None:
    """Return a WebP of at most `width_px` pixels each way; None if the file is not a readable image, or too large."""
    try:
        with Image.open(path, formats=FORMATS) as image:  # reads the header only
            if image.width * image.height > MAX_PIXELS:
                return None
            small = image.convert("RGB")
            small.thumbnail((width_px, width_px), reducing_gap=REDUCING_GAP)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return None
    file = BytesIO()
    small.save(file, "WEBP", quality=WEBP_QUALITY, method=2)
    return file.getvalue()


def thumbnails(paths: Iterable[Path | None], width_px: int = WIDTH_PX) -> Iterator[bytes | None]:
    """Yield a thumbnail for each path, in order; None without a path or a readable image.

    They are made in parallel on all processors. Only a few are in memory.
    """
    workers = cpu_count() or 1
    pending: deque[Future[bytes | None]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        for path in paths:
            pending.append(pool.submit(thumbnail, path, width_px) if path else _no_thumbnail())
            if len(pending) > 2 * workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _no_thumbnail() -> Future[bytes | None]:
    done: Future[bytes | None] = Future()
    done.set_result(None)
    return done


class ThumbnailCache:
    """The most recently used thumbnails, by path."""

    def __init__(self) -> None:
        self._cache: OrderedDict[Path, bytes] = OrderedDict()
        self._lock = Lock()  # used by many threads
        self._decoding = Semaphore(cpu_count() or 1)  # more would take memory, and save no time

    def get(self, path: Path) -> bytes | None:
        """Return the thumbnail of an image, from memory or made now. Blocks."""
        with self._lock:
            if path in self._cache:
                self._cache.move_to_end(path)
                return self._cache[path]
        with self._decoding:
            data = thumbnail(path)
        if data:
            with self._lock:
                self._cache[path] = data
                while len(self._cache) > MAX_CACHED:
                    self._cache.popitem(last=False)
        return data


def local_image_path(out: Path, path: str) -> Path | None:
    """Return the file of an image; None if it is in an object store, or its path leaves the run directory."""
    inside = "://" not in path and not Path(path).is_absolute() and ".." not in Path(path).parts
    return out / path if inside else None
