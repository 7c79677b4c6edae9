"""Imports that need an extra come in; where it is missing, an error that says what to install goes out."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def require_gallery_extra() -> Iterator[None]:
    """Raises InputError where Jinja2, Pillow or matplotlib is missing."""
    from krea_batch.errors import InputError

    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed", "pip install 'krea-batch[gallery]'") from None
