"""The first minutes with the command: without arguments, and `krea-batch demo`."""

from __future__ import annotations

import shlex
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import click
import pytest
from click.testing import CliRunner
from PIL import Image

from krea_batch.cli.app import BAD_INPUT, OVERVIEW, app
from krea_batch.cli.commands.demo import CONTACT_SHEET
from krea_batch.cli.ui.optional_deps import install_command
from krea_batch.errors import InputError
from krea_batch.gallery.contact_sheet import WIDTH_PX, write_contact_sheet
from krea_batch.testing import make_png
from tests.processes import PROCESS_TIMEOUT_S, clean_environment, result_rows, run_command
from tests.test_readme import make_ambiguous, offline_options

MAX_LINES = 10


class TestWithoutArguments:
    """`krea-batch` alone."""

    def test_the_overview(self) -> None:
        """It prints at most ten lines on standard error, and ends with 2, as commands of click do."""
        done = CliRunner().invoke(app, [])
        assert (done.exit_code, done.stdout, done.stderr.rstrip("\n")) == (BAD_INPUT, "", OVERVIEW)
        assert len(OVERVIEW.splitlines()) <= MAX_LINES

    @pytest.mark.slow
    def test_its_commands_run(self, tmp_path: Path) -> None:
        """The commands to try run in this order, in an empty directory and without a key."""
        lines = [line.strip() for line in OVERVIEW.splitlines() if line.startswith("  krea-batch ")]
        commands = [shlex.split(line.partition("   ")[0])[1:] for line in lines]
        assert [command[0] for command in commands] == ["demo", "init", "run"]
        for command in commands:
            done = run_command(*command, *offline_options(command, "unused"), cwd=tmp_path, key="")
            assert done.returncode == 0, done.stderr

    def test_the_commands_that_help_exist(self) -> None:
        """Every command that it names exists."""
        named = [each.split()[0] for each in OVERVIEW.split("krea-batch ")[2:] if not each.startswith("-")]
        assert {"explain", "doctor"} <= {*named}
        assert [name for name in named if app.get_command(click.Context(app), name) is None] == []


@pytest.mark.slow
class TestDemo:
    """`krea-batch demo`."""

    def test_ten_images(self, tmp_path: Path) -> None:
        """It stores ten images and a sheet without a key, says that nothing was charged, and can be repeated."""
        done = run_command("demo", cwd=tmp_path, key="")
        assert done.returncode == 0, done.stderr
        assert "nothing was charged" in done.stdout
        rows = result_rows(tmp_path / "krea-batch-demo")
        assert [row["status"] for row in rows] == ["succeeded"] * 10
        with Image.open(tmp_path / "krea-batch-demo" / CONTACT_SHEET) as sheet:
            assert sheet.format == "JPEG"
        again = run_command("demo", cwd=tmp_path, key="")
        assert again.returncode == 0, again.stderr
        assert result_rows(tmp_path / "krea-batch-demo") == rows

    def test_settings_of_other_runs(self, tmp_path: Path) -> None:
        """Settings of real runs do not apply: neither the environment nor the file limits or redirects the demo."""
        (tmp_path / "krea-batch.toml").write_text('rate = "1/h"\n')
        done = run_command(
            "demo", cwd=tmp_path, key="", KREA_BATCH_SINK="s3://someone/else", KREA_BATCH_MAX_CHARGES="1"
        )
        assert done.returncode == 0, done.stderr
        assert len(list((tmp_path / "krea-batch-demo" / "images").iterdir())) == 10

    def test_the_next_commands_run(self, tmp_path: Path) -> None:
        """The command for the user's own prompt runs as printed, also where the shell does not find `krea-batch`."""
        for n, path in enumerate(("/usr/bin:/bin", f"{Path(sys.executable).parent}:/usr/bin:/bin")):
            done = run_command("demo", f"demo-{n}", cwd=tmp_path, key="", PATH=path)
            (printed,) = [line for line in done.stdout.splitlines() if line.startswith("your own prompt: ")]
            command = printed.partition(":")[2].strip().replace(" --out out", f" --out out-{n}")
            ran = subprocess.run(
                ["sh", "-c", f"{command} --time-scale 100 --poll-interval 0.1"],
                cwd=tmp_path,
                env=clean_environment(PATH=path),
                capture_output=True,
                text=True,
                timeout=PROCESS_TIMEOUT_S,
            )
            assert ran.returncode == 0, ran.stderr

    def test_a_run_of_others(self, tmp_path: Path) -> None:
        """In the directory of another run, nothing is started."""
        make_ambiguous(tmp_path / "out")
        done = run_command("demo", "out", cwd=tmp_path, key="")
        assert done.returncode == BAD_INPUT, done.stderr
        assert not (tmp_path / "out" / CONTACT_SHEET).exists()


class TestContactSheet:
    """The sheet of small images."""

    @pytest.mark.parametrize(("count", "height_px"), [(1, 300), (6, 258), (7, 258 + 10 + 300)])
    def test_size(self, tmp_path: Path, count: int, height_px: int) -> None:
        """A full row is as wide as the sheet, and the last one as high as usual."""
        Image.new("RGB", (700, 700)).save(tmp_path / "square.png")
        write_contact_sheet([tmp_path / "square.png"] * count, tmp_path / "sheet.jpg")
        with Image.open(tmp_path / "sheet.jpg") as sheet:
            assert sheet.size == (WIDTH_PX, height_px)

    def test_a_wide_image(self, tmp_path: Path) -> None:
        """An image that is wider than the sheet is made as wide as it."""
        Image.new("RGB", (9000, 30)).save(tmp_path / "wide.png")
        write_contact_sheet([tmp_path / "wide.png"], tmp_path / "sheet.jpg")
        with Image.open(tmp_path / "sheet.jpg") as sheet:
            assert sheet.size == (WIDTH_PX, 5)

    def test_other_files_are_kept(self, tmp_path: Path) -> None:
        """An earlier sheet is replaced, and no other file."""
        (tmp_path / "a.png").write_bytes(make_png())
        for _ in range(2):
            write_contact_sheet([tmp_path / "a.png"], tmp_path / "sheet.jpg")
        Image.new("RGB", (8, 8)).save(tmp_path / "mine.jpg")
        before = (tmp_path / "mine.jpg").read_bytes()
        for name in ("mine.jpg", "a.png"):
            with pytest.raises(InputError, match="is not a contact sheet"):
                write_contact_sheet([tmp_path / "a.png"], tmp_path / name)
        assert (tmp_path / "mine.jpg").read_bytes() == before


class TestMissingExtras:
    """The command that installs an extra."""

    def test_without_pillow(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """The demo needs Pillow: the error has the command that installs it, and nothing is written."""
        monkeypatch.setitem(sys.modules, "PIL", None)
        monkeypatch.chdir(tmp_path)
        done = CliRunner().invoke(app, ["demo"])
        assert isinstance(done.exception, InputError)
        assert done.exception.hint == f"run: {install_command('simulator')}"
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("tool_file", "expected"),
        [
            ("pipx_metadata.json", "pipx install --force 'krea-batch[gallery]'"),
            ("uv-receipt.toml", "uv tool install 'krea-batch[gallery]'"),
            ("", f"{shlex.quote(sys.executable)} -m pip install 'krea-batch[gallery]'"),
        ],
        ids=["pipx", "uv tool", "pip"],
    )
    def test_tools(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tool_file: str, expected: str) -> None:
        """The command is one of the tool that made the environment."""
        if tool_file:
            (tmp_path / tool_file).touch()
        pip = ModuleType("pip")
        pip.__spec__ = ModuleSpec("pip", None)
        monkeypatch.setitem(sys.modules, "pip", pip)  # also in an environment of uv, which has none
        monkeypatch.setattr(sys, "prefix", str(tmp_path))
        assert install_command("gallery") == expected

    def test_without_pip(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """An environment of uv has no pip: uv itself installs into it."""
        monkeypatch.setattr(sys, "prefix", str(tmp_path))
        monkeypatch.setitem(sys.modules, "pip", None)
        python = shlex.quote(sys.executable)
        assert install_command("gallery") == f"uv pip install --python {python} 'krea-batch[gallery]'"
