"""Tests of the packages that are published. They are built, installed into an empty environment, and used there.

uv installs from the package registry, so these tests need one. PYTHONS names the interpreters: "3.11 3.12".
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.processes import PROCESS_TIMEOUT_S

ROOT = Path(__file__).parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["version"]
PYTHONS = {version: version for version in os.environ.get("PYTHONS", "").split()} or {"this": sys.executable}

TYPED = """
from krea_batch import Engine, Job, run
from krea_batch.observability import MetricsListener

async def main() -> str:
    async with Engine("runs", rate="10/s", listeners=[MetricsListener()]) as engine:
        outcome = await engine.generate(Job(prompt="a cat"))
        return outcome.id
"""
WRONG = TYPED.replace("return outcome.id", "return outcome.files")

pytestmark = pytest.mark.slow


def run_checked(*command: str | Path, cwd: Path) -> str:
    """Run a command in an environment without this checkout, and return its output."""
    hidden = ("KREA_BATCH_", "PIXAZO_", "PYTHONPATH", "VIRTUAL_ENV")
    variables = {name: value for name, value in os.environ.items() if not name.startswith(hidden)}
    done = subprocess.run(
        command, cwd=cwd, env=variables, capture_output=True, text=True, check=False, timeout=PROCESS_TIMEOUT_S
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def uv(*arguments: str | Path, cwd: Path) -> str:
    return run_checked(sys.executable, "-m", "uv", "--quiet", "--no-config", *arguments, cwd=cwd)


def package_files() -> set[str]:
    """Return the files of the package in this checkout."""
    files = (path for path in ROOT.glob("krea_batch/**/*") if path.is_file())
    return {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, which is built from the sdist beside it."""
    folder = tmp_path_factory.mktemp("dist")
    uv("build", "--out-dir", folder, ROOT, cwd=folder)
    return folder / f"krea_batch-{VERSION}-py3-none-any.whl"


@pytest.fixture(scope="session", params=list(PYTHONS.values()), ids=list(PYTHONS))
def environment(request: pytest.FixtureRequest, wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that has the wheel and what it needs."""
    folder = tmp_path_factory.mktemp("environment")
    uv("venv", "--python", request.param, folder / "venv", cwd=folder)
    python = folder / "venv/bin/python"
    uv("pip", "install", "--python", python, f"krea-batch[simulator,metrics] @ {wheel.as_uri()}", cwd=folder)
    return folder / "venv"


def test_the_wheel_has_the_package_and_nothing_else(wheel: Path) -> None:
    """The wheel has each file of the package, among them py.typed, and no other module."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.startswith(f"krea_batch-{VERSION}.")}
    assert names == package_files()
    assert "krea_batch/py.typed" in names


def test_the_sdist_can_be_tested(wheel: Path) -> None:
    """The sdist has the package, the tests and what they read, and no file of an environment or a build."""
    with tarfile.open(wheel.with_name(f"krea_batch-{VERSION}.tar.gz")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert package_files() <= names
    others = {".github/workflows/tests.yml", "CHANGELOG.md", "Dockerfile", "LICENSE", "Makefile", "constraints.txt"}
    assert {"tests/conftest.py", "release/build_hook.py", *others} <= names
    assert {name.partition("/")[0] for name in names} <= {path.name for path in ROOT.iterdir()} | {"PKG-INFO"}
    assert not [name for name in names if name.startswith((".venv", ".git/", "dist/", "build/"))]


def test_the_commands_of_an_installed_wheel(environment: Path, tmp_path: Path) -> None:
    """`krea-batch` and `python -m krea_batch` are the command, and a simulated run stores its images."""
    command, python = environment / "bin/krea-batch", environment / "bin/python"
    assert run_checked(command, "--version", cwd=tmp_path) == f"krea-batch, version {VERSION}\n"
    assert run_checked(python, "-m", "krea_batch", "--version", cwd=tmp_path) == f"krea-batch, version {VERSION}\n"
    (tmp_path / "jobs.jsonl").write_text('{"id": "cat", "prompt": "a cat"}\n{"id": "dog", "prompt": "a dog"}\n')
    run_checked(command, "run", "jobs.jsonl", "--out", "run", "--simulate", "--time-scale=100", cwd=tmp_path)
    images = sorted((tmp_path / "run/images").iterdir())
    assert [path.name for path in images] == ["cat.png", "dog.png"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in images)


def test_the_demo_of_an_installed_wheel(environment: Path, tmp_path: Path) -> None:
    """`krea-batch demo` has its jobs in the wheel, and makes ten images."""
    run_checked(environment / "bin/krea-batch", "demo", "out", cwd=tmp_path)
    assert len(list((tmp_path / "out").rglob("images/*.png"))) == 10


def test_a_wheel_that_is_not_installed(wheel: Path, tmp_path: Path) -> None:
    """uvx runs the command of the wheel in an environment that it makes itself."""
    printed = uv("tool", "run", "--from", wheel, "krea-batch", "--version", cwd=tmp_path)
    assert printed == f"krea-batch, version {VERSION}\n"


def test_the_shell_files_of_an_installed_wheel(environment: Path, tmp_path: Path) -> None:
    """The wheel installs a manual page for each command, and completion that bash loads."""
    help_text = run_checked(environment / "bin/krea-batch", "--help", cwd=tmp_path)
    commands = [line.split()[0] for line in help_text.split("Commands:\n")[1].split("\n\n")[0].splitlines()]
    pages = {path.name for path in (environment / "share/man/man1").glob("krea-batch*.1")}
    assert pages == {"krea-batch.1", *(f"krea-batch-{name}.1" for name in commands)}
    for script in ("zsh/site-functions/_krea-batch", "fish/vendor_completions.d/krea-batch.fish"):
        assert "_KREA_BATCH_COMPLETE" in (environment / "share" / script).read_text("utf-8")
    bash_script = environment / "share/bash-completion/completions/krea-batch"
    loaded = run_checked("bash", "-c", f"source '{bash_script}' && complete -p krea-batch", cwd=tmp_path)
    assert loaded.endswith(" krea-batch\n")


def test_the_types_of_an_installed_wheel(environment: Path, tmp_path: Path) -> None:
    """mypy --strict reads the types of the installed package, and finds a wrong use of them."""
    mypy = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file=",
        f"--python-executable={environment}/bin/python",
    ]
    (tmp_path / "right.py").write_text(TYPED)
    (tmp_path / "wrong.py").write_text(WRONG)
    run_checked(*mypy, "right.py", cwd=tmp_path)
    with pytest.raises(AssertionError, match="Incompatible return value"):
        run_checked(*mypy, "wrong.py", cwd=tmp_path)
