"""Tests of the page's template and scripts, without a browser."""

from __future__ import annotations

from importlib.resources import files

from krea_batch.gallery.rendering import SCRIPTS


def test_every_script_is_in_the_page() -> None:
    """The list of scripts names each file once; a file that it forgets would be dead."""
    names = [file.name for file in files("krea_batch.gallery").joinpath("page").iterdir()]
    assert sorted(SCRIPTS) == sorted(name for name in names if name.endswith(".js"))
