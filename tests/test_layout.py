"""The source tree: every module is listed, every name is used once, and each library is imported where it belongs."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from functools import cache
from pathlib import Path

import grimp
import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = sorted(path.parent for path in ROOT.glob("krea_batch/**/__init__.py"))

# `settings` and `server` are conventional names of the two programs here, the engine and the simulator.
# A file in `cli/commands` is named for its command.
SHARED_MODULE_NAMES = {"__init__", "__main__", "conftest", "settings", "server"}

IMPORTED_ONLY_IN: dict[str, set[str]] = {
    "aiohttp": {
        "krea_batch.gateway", "krea_batch.gallery.server", "krea_batch.testing.simulator",
        "krea_batch.benchmark.scripts.asyncio_tasks",
    },
    "aiolimiter": {"krea_batch.pipeline", "krea_batch.benchmark.scripts.asyncio_tasks"},
    "celery": {"krea_batch.benchmark.scripts.celery_worker"},
    "obstore": {"krea_batch.storage.reference_store", "krea_batch.storage.sinks.object_store"},
    "opentelemetry": {"krea_batch.observability.traces"},
    "prometheus_client": {
        "krea_batch.observability.metrics", "krea_batch.observability.metrics_server",
        "krea_batch.cli.options.logging_options",
    },
    "rich": {"krea_batch.cli", "krea_batch.benchmark.output"},
    "psycopg": {"krea_batch.ledger.postgres"},
    "psutil": {"krea_batch.benchmark.process_tree"},
    "pytest": {"krea_batch.testing.fixtures"},
    "ray": {"krea_batch.ray", "krea_batch.benchmark.scripts.ray_stage"},
    "requests": {"krea_batch.benchmark.scripts"},
    "sqlite3": {"krea_batch.ledger.sqlite", "krea_batch.sources.moved_rows"},
}  # fmt: skip
"""Library, and the packages or modules that may import it; each of them does."""


def modules() -> list[Path]:
    return sorted(ROOT.glob("krea_batch/**/*.py"))


@pytest.mark.parametrize("package", PACKAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_package_lists_its_modules(package: Path) -> None:
    """The docstring of each `__init__` names every module and package beside it."""
    docstring = ast.get_docstring(ast.parse((package / "__init__.py").read_text("utf-8"))) or ""
    names = {path.stem for path in package.glob("*.py")} - {"__init__", "__main__"}
    names |= {path.parent.name for path in package.glob("*/__init__.py")}
    missing = {name for name in names if not re.search(rf"\b{name}\b", docstring)}
    assert not missing, f"{package.name}/__init__.py does not list {', '.join(sorted(missing))}"


def test_module_names_are_used_once() -> None:
    """No two modules have one name, except those that a convention shares."""
    places = defaultdict(list)
    for path in [*modules(), *sorted(ROOT.glob("tests/**/*.py"))]:
        if path.stem not in SHARED_MODULE_NAMES and path.parent.name != "commands":
            places[path.stem].append(str(path.relative_to(ROOT)))
    assert [found for found in places.values() if len(found) > 1] == []


def test_class_names_are_used_once() -> None:
    """No two classes of the package have one name, and no helper class of the tests has the name of one of them."""
    places = defaultdict(list)
    for path in [*modules(), *sorted(ROOT.glob("tests/**/*.py"))]:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and not node.name.startswith("Test"):
                places[node.name].append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


@cache
def import_graph() -> grimp.ImportGraph:
    return grimp.build_graph("krea_batch", include_external_packages=True, exclude_type_checking_imports=True)


@pytest.mark.parametrize("library", IMPORTED_ONLY_IN)
def test_a_library_is_imported_only_where_it_belongs(library: str) -> None:
    """Nothing else imports the library, and each place named in the table does."""
    places = IMPORTED_ONLY_IN[library]
    importers = import_graph().find_modules_that_directly_import(library)

    def within(module: str, place: str) -> bool:
        return module == place or module.startswith(f"{place}.")

    assert {module for module in importers if not any(within(module, place) for place in places)} == set()
    assert {place for place in places if not any(within(module, place) for module in importers)} == set()
