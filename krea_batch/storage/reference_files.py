"""Reads local reference images: whether they can be uploaded, and the name of their content.

The name is the SHA-256 of the bytes and the extension of their type, so equal images are uploaded once, whatever
their paths are, and an edited image is another one.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from krea_batch.errors import JobError
from krea_batch.jobs import FileReference, ImageStyleReference, Job
from krea_batch.storage.image_types import EXTENSIONS, detect_media_type
from krea_batch.storage.operating_system import BINARY, NO_WAITING

MAX_REFERENCE_BYTES = 32 << 20  # chosen: ten times a large photo; the API document names no limit
REFERENCE_FILES = "reference_files"
"""Key of the metadata: the paths of local reference images by the names of their contents.

A later run uploads an image from there if the object is gone, and if the file still has this content.
"""

_MEDIA_TYPES = ("image/png", "image/jpeg", "image/webp")  # chosen: those that every service reads


class ReferenceFile(msgspec.Struct, frozen=True):
    """A local reference image, as it was read. `name` is that of its content."""

    path: str
    name: str
    size_bytes: int


def has_paths(job: Job) -> bool:
    """Return whether a job has a local reference image that was not read yet."""
    return any(each.image_path and not isinstance(each, FileReference) for each in job.image_style_references)


def content_names(job: Job) -> list[str]:
    """Return the names of the contents of a job's local reference images that were read."""
    return [each.name for each in job.image_style_references if isinstance(each, FileReference)]


def with_contents(job: Job, read: Callable[[str], ReferenceFile], directory: str = "") -> Job:
    """Return the job with the contents of its local reference images, whose paths are relative to `directory`.

    `read` returns what the image at a path is. The paths are noted in the metadata. Raises JobError.
    """
    references: list[ImageStyleReference] = []
    paths: dict[str, str] = {}
    for each in job.image_style_references:
        if not each.image_path or isinstance(each, FileReference):
            references.append(each)
            continue
        file = read(str(Path(directory) / each.image_path))
        references.append(FileReference(f"sha256:{file.name}", each.strength, file.path))
        paths.setdefault(file.name, file.path)
    earlier = job.metadata.get(REFERENCE_FILES)
    metadata: dict[str, Any] = job.metadata | {
        REFERENCE_FILES: (earlier if isinstance(earlier, dict) else {}) | paths
    }
    return msgspec.structs.replace(job, image_style_references=tuple(references), metadata=metadata)


def read_reference(path: str) -> ReferenceFile:
    """Return what the image at `path` is. Raises JobError if it is none that can be uploaded."""
    data = _read(path)
    media_type = detect_media_type(data)
    if media_type is None or media_type not in _MEDIA_TYPES:
        found = f"of the type {media_type}" if media_type else "not an image" if data else "empty"
        raise JobError(f"the reference image {path!r} is {found}", "use a PNG, JPEG or WebP file")
    return ReferenceFile(path, hashlib.sha256(data).hexdigest() + EXTENSIONS[media_type], len(data))


def read_unchanged(path: str, name: str) -> bytes:
    """Return the bytes of an image that was read before. Raises JobError if the content has another name now."""
    data = _read(path)
    if hashlib.sha256(data).hexdigest() != name.partition(".")[0]:
        hint = "run again with the file as it is meant to be"
        raise JobError(f"the reference image {path!r} has changed since it was checked", hint)
    return data


def _read(path: str) -> bytes:
    """Return the bytes of a regular file of at most MAX_REFERENCE_BYTES. Raises JobError."""
    try:
        with _open(path) as file:
            data = file.read(MAX_REFERENCE_BYTES + 1)
    except FileNotFoundError:
        problem, hint = f"there is no reference image {path!r}", "write image_path relative to the job file"
        raise JobError(problem, hint) from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a path"
        hint = "check the path and its permissions"
        raise JobError(f"cannot read the reference image {path!r} ({reason})", hint) from None
    if len(data) > MAX_REFERENCE_BYTES:
        problem = f"the reference image {path!r} is larger than {MAX_REFERENCE_BYTES >> 20} MiB"
        raise JobError(problem, "use a smaller one")
    return data


def _open(path: str) -> BinaryIO:
    # Opening a pipe would wait for a writer, so it is opened without blocking, and refused.
    descriptor = os.open(path, os.O_RDONLY | NO_WAITING | BINARY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(0, "not a regular file")
    return os.fdopen(descriptor, "rb")
