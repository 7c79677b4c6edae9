"""The paths of images in an export: as in the run, or by a template of the user, and each of them once.

Other file systems do not tell `Cat.png` from `cat.png`, so two names never differ in case only.
"""

from __future__ import annotations

import unicodedata
from typing import Any

import msgspec

from krea_batch.errors import InputError, JobError
from krea_batch.jobs import Job
from krea_batch.maintenance.export.run_images import ExportedImage
from krea_batch.rules.image_names import NameTemplate, safe_path, values_of


class ImagePaths:
    """Gives the images of one export their paths, in order.

    Without a template, a path is that of the run below images/. With `is_safe`, it is valid on Windows. Without
    `has_dots`, the dots in names are replaced. `portable` is as in `NameTemplate`. Raises InputError.
    """

    def __init__(
        self, template: str = "", *, portable: bool = False, is_safe: bool = False, has_dots: bool = True
    ) -> None:
        try:
            self._template = NameTemplate(template, portable=portable) if template else None
        except JobError as error:
            raise InputError(error.problem, error.hint) from None
        self._portable = portable
        self._is_safe = is_safe or portable
        self._has_dots = has_dots
        self._taken: set[str] = set()
        self._next_numbers: dict[str, int] = {}  # by the name that was wanted

    def path_of(self, image: ExportedImage) -> str:
        """Return the path of the next image, with its extension. Raises InputError as `stem_of`."""
        return f"{self.stem_of(image)}{image.path.suffix}"

    def stem_of(self, image: ExportedImage) -> str:
        """Return the path of the next image without extension, which no other image has.

        Raises InputError if a field of the template is missing, or the path would be too long.
        """
        try:
            folder, slash, name = self._wanted(image).rpartition("/")
        except JobError as error:
            raise InputError(f"job {image.outcome.id!r}: {error.problem}", error.hint) from None
        return self._free(folder + slash + (name if self._has_dots else name.replace(".", "_")))

    def _wanted(self, image: ExportedImage) -> str:
        if self._template:
            stem = self._template.render(values_of_image(image))
            return stem if image.output == 1 or "output" in self._template.names else f"{stem}-{image.output}"
        return safe_path(image.stem, portable=self._portable) if self._is_safe else image.stem

    def _free(self, stem: str) -> str:
        separator = "-" if self._portable else "~"
        wanted = key = _folded(stem)
        number = self._next_numbers.get(wanted, 2)
        free = stem
        while key in self._taken:
            free = f"{stem}{separator}{number}"
            key, number = _folded(free), number + 1
        if free != stem:
            self._next_numbers[wanted] = number
        self._taken.add(key)
        return free


def values_of_image(image: ExportedImage) -> dict[str, Any]:
    """Return what a template can name: the metadata and fields of the job, and those of the image."""
    request = image.outcome.request
    fields: dict[str, Any] = {
        name: request[name] for name in ("prompt", "aspect_ratio", "creativity", "seed") if name in request
    }
    job = msgspec.convert({**fields, "metadata": image.outcome.metadata}, Job)
    return values_of(job, image.outcome.id) | {
        "output": image.output,
        "number": image.number,
        "width": image.file.width,
        "height": image.file.height,
        "sha256": image.file.sha256,
    }


def _folded(stem: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", stem).casefold())
