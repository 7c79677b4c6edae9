"""Checks that the version is in one place, pyproject.toml, and that the changelog has it.

`python -m release.version` checks a development version; `python -m release.version v0.1.0` the tag of a release,
whose section in the changelog has a date.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ("krea_batch/**/*.py", "release/**/*.py", "docs/**/*.py", "mkdocs.yml", "Dockerfile")


def problems(root: Path, tag: str | None = None) -> Iterator[str]:
    """Yield a sentence for each problem of the checkout in `root`."""
    version = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]["version"]
    literal = re.compile(rf"""["'=]{re.escape(version)}(?![\w.])""")
    for path in sorted({path for pattern in SOURCES for path in root.glob(pattern)}):
        lines = enumerate(path.read_text("utf-8").splitlines(), 1)
        copies = [number for number, line in lines if literal.search(line)]
        yield from (f"{path.relative_to(root)}, line {number} repeats the version {version}" for number in copies)
    newest = re.search(r"^## (\S+) \((.+)\)$", (root / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    if newest is None or newest[1] != version:
        yield f"the first section of CHANGELOG.md is not that of {version}"
    elif tag and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", newest[2]):
        yield f"CHANGELOG.md has no date for {version}, but ({newest[2]})"
    if tag and tag != f"v{version}":
        yield f"the tag is {tag}, but pyproject.toml has the version {version}"


def main(tag: str | None = None) -> int:
    """Print the problems, and return the exit code."""
    found = list(problems(ROOT, tag))
    print(*found or ["the version and the changelog agree"], sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
