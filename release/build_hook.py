"""Adds the manual pages and the completion scripts to a wheel. Hatchling runs it, see pyproject.toml."""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ShellFilesHook(BuildHookInterface):  # type: ignore[type-arg]  # of any builder
    """Installs them below `share` of the environment, where man and the shells look for them."""

    _folder: TemporaryDirectory[str] | None = None

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the files, and add them to the wheel."""
        if version == "editable":
            return
        sys.path.insert(0, self.root)
        from release.shell_files import shell_files

        self._folder = TemporaryDirectory()
        for target, text in shell_files(self.metadata.version).items():
            path = Path(self._folder.name) / target
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
            build_data["shared_data"][str(path)] = target

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the files."""
        if self._folder:
            self._folder.cleanup()
