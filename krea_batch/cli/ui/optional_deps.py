"""Errors that name the extra to install."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path


@contextmanager
def require_gallery_extra() -> Iterator[None]:
    """Raise InputError if Jinja2, Pillow or matplotlib is missing."""
    from krea_batch.errors import InputError

    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(f"{error.name} is not installed", f"run: {install_command('gallery')}") from None


def has_gallery_extra() -> bool:
    """Return whether `krea-batch view` and `report` have their libraries."""
    return all(find_spec(name) for name in ("jinja2", "matplotlib", "PIL"))


def require_simulator_extra() -> None:
    """Raise InputError if Pillow is missing, with which the simulator draws its images."""
    from krea_batch.errors import InputError

    if not find_spec("PIL"):
        problem = "the simulator draws its images with Pillow, which is not installed"
        raise InputError(problem, f"run: {install_command('simulator')}")


def install_command(extra: str) -> str:
    """Return the command that adds an extra to this installation, whichever tool made it.

    pipx and uv keep a file at the root of the environment of each tool; other environments of uv have no pip.
    """
    requirement = f"'krea-batch[{extra}]'"
    environment = Path(sys.prefix)
    if (environment / "pipx_metadata.json").exists():
        return f"pipx install --force {requirement}"
    if (environment / "uv-receipt.toml").exists():
        return f"uv tool install {requirement}"
    if not find_spec("pip"):
        return f"uv pip install --python {shlex.quote(sys.executable)} {requirement}"
    return f"{shlex.quote(sys.executable)} -m pip install {requirement}"
