"""The path of an image comes in; a small WebP goes out, or None where there is none to be had."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from os import cpu_count
from pathlib import Path
from threading import Lock

from PIL import Image

WIDTH_PX = 240  # chosen: sharp at the size that the page shows; some 6 kB each
WEBP_QUALITY = 70
REDUCING_GAP = 1.0  # chosen: a third of the time of 3.0, and no difference that is seen at such a size
MAX_CACHED = 2000  # chosen: 12 MB of what was just looked at


def thumbnail(path: Path, width_px: int = WIDTH_PX) -> bytes | None:
    """A WebP of at most that many pixels each way; None where the file cannot be read as an image."""
    try:
        with Image.open(path) as image:
            small = image.convert("RGB")
            small.thumbnail((width_px, width_px), reducing_gap=REDUCING_GAP)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    file = BytesIO()
    small.save(file, "WEBP", quality=WEBP_QUALITY, method=2)
    return file.getvalue()


def thumbnails(paths: Iterable[Path | None], width_px: int = WIDTH_PX) -> Iterator[bytes | None]:
    """One for each path, in order; as many at once as there are processors, and few more in memory."""
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
    """The thumbnails that were asked for last, by path."""

    def __init__(self) -> None:
        self._cache: OrderedDict[Path, bytes] = OrderedDict()
        self._lock = Lock()  # asked from many threads

    def get(self, path: Path) -> bytes | None:
        """The thumbnail of an image, from memory or made now. Blocks."""
        with self._lock:
            if path in self._cache:
                self._cache.move_to_end(path)
                return self._cache[path]
        data = thumbnail(path)
        if data:
            with self._lock:
                self._cache[path] = data
                while len(self._cache) > MAX_CACHED:
                    self._cache.popitem(last=False)
        return data


def local_image_path(out: Path, path: str) -> Path | None:
    """The file of an image; None where it is kept in an object store, or would lie outside of the run's folder."""
    inside = "://" not in path and not Path(path).is_absolute() and ".." not in Path(path).parts
    return out / path if inside else None
