"""Adds files of the repository to the site as pages, so that they are written in one place."""

from __future__ import annotations

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

GENERATED_PAGES = {
    "changelog.md": "CHANGELOG.md",
    "measured.md": "benchmarks/README.md",
    "comparison.svg": "benchmarks/comparison.svg",
    "limiters.svg": "benchmarks/limiters.svg",
    "scale.svg": "benchmarks/scale.svg",
    "security.md": "SECURITY.md",
}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add the pages; MkDocs calls this before it reads any page."""
    root = Path(config.config_file_path).parent
    for page, source in GENERATED_PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(root / source)))
    return files
