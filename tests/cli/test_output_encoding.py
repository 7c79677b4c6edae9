"""Test the output on terminals and in files that cannot show every letter, such as those with cp1252."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from krea_batch.maintenance.export.png_metadata import embed_texts
from krea_batch.testing import make_png
from tests.processes import PROCESS_TIMEOUT_S


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
def test_letters_that_cannot_be_shown_are_escaped(tmp_path: Path, encoding: str) -> None:
    """Text has escapes for them, and JSON stays valid JSON with the same value."""
    image = tmp_path / "fox.png"
    image.write_bytes(embed_texts(make_png(), {"prompt": "a fox 🦊"}))
    environment = os.environ | {"PYTHONIOENCODING": encoding}

    def inspect(*options: str) -> str:
        command = [sys.executable, "-m", "krea_batch", "inspect", str(image), *options]
        done = subprocess.run(command, capture_output=True, env=environment, timeout=PROCESS_TIMEOUT_S, check=True)
        return done.stdout.decode(encoding)

    assert "a fox \\U0001f98a" in inspect()
    assert json.loads(inspect("--json"))["texts"]["prompt"] == "a fox 🦊"
