"""The types of images that the gateway may send, recognised by their first bytes.

The API document promises PNGs, which `png` checks completely. An image of another type is paid for as well, so it is
kept under its true type; only its length can be checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from krea_batch.storage.png import SIGNATURE, ImageError, PngValidator

PNG = "image/png"  # API document, Response Completed: media_type
EXTENSIONS: Mapping[str, str] = {
    PNG: ".png",
    "image/jpeg": ".jpg",
    "image/webp": ".webp",
    "image/gif": ".gif",
    "image/avif": ".avif",
}
"""The extension of the files of each type."""

MEDIA_TYPES: Mapping[str, str] = {extension: media_type for media_type, extension in EXTENSIONS.items()}
"""The type of the files with each extension."""

HEAD_BYTES = 12  # chosen: enough for every type below
_FIRST_BYTES = b"\x89\xffRG\0"  # of all types, in the order below


def detect_media_type(head: bytes) -> str | None:
    """Return the type of an image from its first HEAD_BYTES bytes or more; None if it is none of EXTENSIONS. Pure.

    Sources: PNG specification, 5.2; JPEG (ITU T.81, B.1.1.3); WebP (RFC 9649, 2.4); GIF89a, 17; AVIF 1.1, 2.1.
    """
    if head.startswith(SIGNATURE):
        return PNG
    if head.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "image/webp"
    if head.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if head[4:12] in (b"ftypavif", b"ftypavis"):
        return "image/avif"
    return None


class ImageValidator:
    """Checks an image as it streams: every chunk of a PNG, the first bytes of another type.

    `feed` all bytes in order, then call `finish`; both may raise ImageError. Then `media_type` is the type, and
    `defect` says what is wrong with an image that is kept nevertheless. `width` and `height` (pixels) are those of a
    PNG, else 0.
    """

    __slots__ = ("_head", "_png", "defect", "media_type")

    def __init__(self) -> None:
        self.media_type = ""
        self.defect = ""
        self._head = b""  # until the type is known
        self._png: PngValidator | None = None

    @property
    def width(self) -> int:
        return self._png.width if self._png else 0

    @property
    def height(self) -> int:
        return self._png.height if self._png else 0

    def feed(self, data: bytes) -> None:
        """Check the next bytes."""
        if not self.media_type:
            self._head += data
            if len(self._head) < HEAD_BYTES and self._head[:1] in _FIRST_BYTES:
                return
            data, self._head = self._head, b""
            self._detect(data)
        if self._png:
            self._png.feed(data)

    def finish(self, *, is_sized: bool, keep_surplus: bool = False) -> None:
        """Raise ImageError unless the image is complete.

        A PNG shows its end itself. An image of another type is complete if the response announced its size
        (`is_sized`), and so is, with `keep_surplus`, a PNG with bytes after its end. Both then have a `defect`.
        """
        if not self.media_type:
            self._detect(self._head)
        if self._png is None:
            if not is_sized:
                raise ImageError(f"{self.media_type} of unknown size instead of {PNG}")
            self.defect = f"{self.media_type} instead of {PNG}; only its size was checked"
        elif is_sized and keep_surplus and self._png.surplus_bytes:
            self.defect = f"{self._png.surplus_bytes:,} bytes after the end of the PNG"
        else:
            self._png.finish()

    def _detect(self, head: bytes) -> None:
        media_type = detect_media_type(head)
        if media_type is None:
            raise ImageError(f"does not start like an image but with {head[:16]!r}" if head else "no bytes")
        self.media_type = media_type
        if media_type == PNG:
            self._png = PngValidator()


def measure_image(path: Path) -> tuple[int, int]:
    """Return width and height in pixels; 0, 0 if Pillow is not installed or cannot read the image."""
    try:
        from PIL import Image  # optional
    except ModuleNotFoundError:
        return 0, 0
    formats = [extension[1:].replace("jpg", "jpeg").upper() for extension in EXTENSIONS.values()]
    try:
        with Image.open(path, formats=formats) as image:  # reads the header only
            return image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError, Image.DecompressionBombWarning):
        return 0, 0
