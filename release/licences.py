"""Checks that krea-batch, which has the MIT licence, may be distributed with each package that it depends on.

`python -m release.licences` reads the metadata of the installed packages: those that `krea-batch[all]` needs, and
what they need themselves.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ACCEPTED = {
    "0BSD", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "CC0-1.0", "HPND", "ISC", "MIT", "MIT-CMU", "MPL-2.0",
    "PSF-2.0", "Python-2.0", "Unlicense", "Zlib",
}  # fmt: skip
"""SPDX identifiers. MPL-2.0 concerns only the files that have it, which are not changed."""

EXCEPTIONS = {
    "psycopg": "LGPL-3.0-only: an extra that the user installs and can replace; it is not changed or copied",
    "psycopg-binary": "LGPL-3.0-only: as psycopg",
}
"""Packages with another licence, and why they are no problem."""

NAMES = {
    "Apache 2.0": "Apache-2.0", "Apache License 2.0": "Apache-2.0", "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0", "BSD License": "BSD-3-Clause", "BSD": "BSD-3-Clause",
    "ISC License (ISCL)": "ISC", "MIT License": "MIT", "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "Python Software Foundation License": "PSF-2.0",
}  # fmt: skip
"""What older metadata calls them: classifiers, and names in the field License."""


def problems(package: str, extras: frozenset[str]) -> Iterator[str]:
    """Yield a sentence for each dependency without an accepted licence, and for each exception that is not needed."""
    used_exceptions = set()
    for found in sorted(dependencies(package, extras), key=lambda each: each.name):
        licence = licence_of(found)
        if is_accepted(licence):
            continue
        name = canonicalize_name(found.name)
        if name in EXCEPTIONS:
            used_exceptions.add(name)
        else:
            yield f"{name} has the licence {licence or '(none named)'}, which is not in ACCEPTED"
    for unused in sorted(EXCEPTIONS.keys() - used_exceptions):
        yield f"{unused} is in EXCEPTIONS, and needs no exception"


def dependencies(package: str, extras: frozenset[str]) -> list[Distribution]:
    """Return the installed packages that a package with these extras needs, without the package itself.

    Raises PackageNotFoundError if one of them is not installed.
    """
    found: dict[str, Distribution] = {}
    seen = set()
    waiting: list[tuple[str, frozenset[str]]] = [(package, extras)]
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        found[name] = distribution(name)
        for line in found[name].requires or ():
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in (*wanted, "")):
                waiting.append((canonicalize_name(requirement.name), frozenset(requirement.extras)))
    return [each for name, each in found.items() if name != package]


def licence_of(package: Distribution) -> str:
    """Return the licence as an SPDX expression, or what the package says instead of one; empty if nothing."""
    metadata = package.metadata
    if "License-Expression" in metadata:
        return metadata["License-Expression"]
    classifiers = metadata.get_all("Classifier") or []
    named = [text.rpartition(" :: ")[2] for text in classifiers if text.startswith("License :: OSI Approved :: ")]
    if not named and "License" in metadata:
        named = [metadata["License"].partition("\n")[0].strip()]
    return " AND ".join(NAMES.get(name, name) for name in named)


def is_accepted(expression: str) -> bool:
    """Return whether an SPDX expression allows the distribution: all parts of AND, one part of OR.

    Of an expression with parentheses, all parts have to be accepted.
    """
    alternatives = [expression] if "(" in expression else expression.split(" OR ")
    parts = (re.split(r"[() ]+(?:AND|OR)[() ]+", each.strip("()")) for each in alternatives)
    return any(all(part in ACCEPTED for part in each) for each in parts)


def main() -> int:
    """Print the problems, and return the exit code."""
    found = list(problems("krea-batch", frozenset({"all"})))
    print(*found or ["every dependency has an accepted licence or a named exception"], sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
