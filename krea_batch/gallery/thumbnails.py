"""Makes WebP thumbnails of images, and keeps them in the run directory."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from os import cpu_count
from pathlib import Path
from threading import Lock, Semaphore

from PIL import Image

from krea_batch.gallery.thumbnail_files import LocalImage, ThumbnailFiles

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


class RunThumbnails:
    """The thumbnails of the images of a run: kept in its directory, and made if they are missing there."""

    def __init__(self, out: Path, width_px: int = WIDTH_PX) -> None:
        self._width_px = width_px
        self._files = ThumbnailFiles(out) if width_px == WIDTH_PX else None  # other widths are not kept

    def get(self, image: LocalImage) -> bytes | None:
        """Return the thumbnail of an image; None if the image is not readable, or too large. Blocks."""
        data = self._files.read(image.sha256) if self._files else None
        if data is None:
            data = thumbnail(image.path, self._width_px)
            if data and self._files:
                self._files.write(image.sha256, data)
        return data

    def get_all(self, images: Iterable[LocalImage | None]) -> Iterator[bytes | None]:
        """Yield the thumbnail of each image, in order; None without an image, and as `get`.

        They are made in parallel on all processors. Only a few are in memory.
        """
        workers = cpu_count() or 1
        pending: deque[Future[bytes | None]] = deque()
        with ThreadPoolExecutor(workers) as pool:
            for image in images:
                pending.append(pool.submit(self.get, image) if image else _no_thumbnail())
                if len(pending) > 2 * workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()


def _no_thumbnail() -> Future[bytes | None]:
    done: Future[bytes | None] = Future()
    done.set_result(None)
    return done


class ThumbnailCache:
    """The most recently used thumbnails of a run, in memory: its directory may be read-only."""

    def __init__(self, out: Path) -> None:
        self._thumbnails = RunThumbnails(out)
        self._cache: OrderedDict[LocalImage, bytes] = OrderedDict()
        self._lock = Lock()  # used by many threads
        self._decoding = Semaphore(cpu_count() or 1)  # more would take memory, and save no time

    def get(self, image: LocalImage) -> bytes | None:
        """Return the thumbnail of an image, as `RunThumbnails.get` does. Blocks."""
        with self._lock:
            if image in self._cache:
                self._cache.move_to_end(image)
                return self._cache[image]
        with self._decoding:
            data = self._thumbnails.get(image)
        if data:
            with self._lock:
                self._cache[image] = data
                while len(self._cache) > MAX_CACHED:
                    self._cache.popitem(last=False)
        return data
