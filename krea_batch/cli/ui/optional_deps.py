"""Errors that name the extra to install."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def require_gallery_extra() -> Iterator[None]:
    """Raise InputError if Jinja2, Pillow or matplotlib is missing."""
    from krea_batch.errors import InputError

    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed", "run: pip install 'krea-batch[gallery]'") from None
