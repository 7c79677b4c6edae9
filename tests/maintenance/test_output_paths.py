"""No command deletes or overwrites anything of a run or of a stranger, however its paths are aimed."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from krea_batch.cli.app import app
from krea_batch.errors import InputError
from tests.gallery.gallery_fixtures import SeedJob, make_run
from tests.processes import StartSimulator, run_command, write_jobs

FORMATS = ("imagefolder", "parquet", "webdataset", "csv", "zip")


def snapshot(folder: Path) -> dict[str, tuple[int, bytes | str | None]]:
    """Return type and content of everything in a directory. Locks and times of access are not part of it."""
    found: dict[str, tuple[int, bytes | str | None]] = {}
    for path in folder.rglob("*"):
        mode = path.lstat().st_mode
        content = str(path.readlink()) if path.is_symlink() else path.read_bytes() if stat.S_ISREG(mode) else None
        found[str(path.relative_to(folder))] = (stat.S_IFMT(mode), content)
    return found


@pytest.fixture
def world(tmp_path: Path, finished_run: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a run, a second run, and the files of a stranger."""
    world = tmp_path / "world"
    shutil.copytree(finished_run, world / "runs" / "cats")
    shutil.copytree(finished_run, world / "runs" / "others")
    (world / "lost").mkdir()
    shutil.copytree(finished_run / "images", world / "lost" / "images")
    shutil.copy(finished_run / "results.jsonl", world / "lost")  # a run that has lost its ledger
    stranger = world / "stranger"
    (stranger / "folder").mkdir(parents=True)
    (stranger / "folder" / "thesis.txt").write_text("years of work")
    (stranger / "shards").mkdir()
    (stranger / "shards" / "shard-000000.tar").write_bytes(b"not ours")
    (stranger / "dataset").mkdir()
    (stranger / "dataset" / "metadata.jsonl").write_text('{"file_name": "a.png", "text": "x"}\n')
    (stranger / "dataset" / "a.png").write_bytes(b"png")
    for name in ("set.csv", "set.zip", "set.parquet", "page.html", "notes.txt", "run.log", "bench.json", "cost.svg"):
        (stranger / name).write_text("path,mine\n1,2\n")
    links = world / "links"
    links.mkdir()
    (links / "run").symlink_to(world / "runs" / "cats")
    (links / "ledger").symlink_to(world / "runs" / "cats" / "ledger.db")
    (links / "stranger").symlink_to(stranger / "folder")
    (links / "nowhere").symlink_to(world / "nowhere")
    os.link(world / "runs" / "cats" / "results.jsonl", links / "hard")
    os.link(world / "runs" / "cats" / "ledger.db", links / "hard-ledger")
    monkeypatch.chdir(world)
    monkeypatch.setenv("PIXAZO_API_KEY", "k")
    return world


OF_A_RUN = (
    "runs/cats", "runs/cats/", "runs/../runs/cats", "runs/cats/images/..", "runs/cats/images",
    "runs/cats/images/x", "runs/cats/images/sub/x", "runs/cats/images/job.1.png", "runs/cats/ledger.db",
    "runs/cats/ledger.db-wal", "runs/cats/ledger.db-new", "runs/cats/results.jsonl", "runs/cats/LEDGER.DB",
    "runs/cats/Images/x", "runs/others", "runs/others/results.jsonl", "runs/cats/simulated.jsonl",
    "runs/cats/../others/images/x", "runs", ".", "..", "lost", "lost/images", "lost/results.jsonl",
    "lost/images/x", "links/run", "links/run/images", "links/run/images/x", "links/run/ledger.db",
    "links/run/../others", "links/ledger", "links/hard", "links/hard-ledger", "links/nowhere",
    "runs/cats/.results.jsonl.part", "runs/cats/unrecorded.jsonl", "runs/cats/result.json",
)  # fmt: skip
"""Paths that lead to a run, a part of it, or something that holds it."""
OF_A_STRANGER = (
    "stranger", "stranger/folder", "stranger/shards", "stranger/dataset", "stranger/set.csv", "stranger/set.zip",
    "stranger/set.parquet", "stranger/page.html", "stranger/notes.txt", "stranger/run.log", "links/stranger",
    "stranger/folder/thesis.txt",
)  # fmt: skip
EVERY_TARGET = (*OF_A_RUN, *OF_A_STRANGER)


def refused(*arguments: str) -> Result:
    """Run a command, and check that it fails as for a wrong input."""
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 2 or isinstance(done.exception, InputError), (done.output, done.exception)
    return done


@pytest.fixture
def unchanged(world: Path) -> Iterator[None]:
    """Check at the end that nothing in the working directory has changed."""
    before = snapshot(world)
    yield
    assert snapshot(world) == before


@pytest.mark.slow
@pytest.mark.usefixtures("unchanged")
class TestTargets:
    @pytest.mark.parametrize("format_", FORMATS)
    def test_export(self, format_: str) -> None:
        """`export --force` in any format replaces no run, no part of one, and no file of a stranger."""
        for target in EVERY_TARGET:
            refused("export", "runs/cats", "--format", format_, "--output", target, "--force")

    def test_export_without_force(self) -> None:
        """Without --force, an export replaces nothing either, and does not advise --force for a stranger's file."""
        for target in EVERY_TARGET:
            done = refused("export", "runs/cats", "--format", "zip", "--output", target)
            assert "add --force" not in str(done.exception)

    def test_report(self) -> None:
        """`report --output` replaces reports only."""
        for target in EVERY_TARGET:
            refused("report", "runs/cats", "--quiet", "--output", target)

    def test_bench(self) -> None:
        """`bench --out` writes nothing into a run, and replaces no stranger's bench.json or plot."""
        for target in (
            "runs/cats",
            "runs/cats/images",
            "runs/cats/images/x",
            "runs/cats/ledger.db",
            "links/run",
            "stranger",
        ):
            refused("bench", "--rates", "20/s", "--jobs", "1", "--out", target)

    @pytest.mark.parametrize("command", [("run", "jobs.jsonl", "--out", "new"), ("retry", "runs/cats")])
    def test_log_files(self, command: tuple[str, ...]) -> None:
        """`--log-file` appends to logs only, and is no part of a run."""
        for target in EVERY_TARGET:
            done = refused(*command, "--simulate", "--log-file", target)
            assert "log" in f"{done.exception}{done.output}"

    def test_state_files(self) -> None:
        """`simulate --state-file` appends to its own files only."""
        for target in EVERY_TARGET:
            if target != "runs/cats/simulated.jsonl":
                refused("simulate", "--port", "0", "--state-file", target)

    @pytest.mark.parametrize("name", ["ledger.db", "results.jsonl", "images/run.log", "images"])
    def test_logs_in_a_run_that_does_not_exist_yet(self, name: str) -> None:
        """The log is not written under the name of a file that the run will have."""
        refused("run", "jobs.jsonl", "--out", "new", "--simulate", "--log-file", f"new/{name}")


@pytest.mark.slow
class TestReplacing:
    @pytest.mark.parametrize("format_", FORMATS)
    def test_an_export_is_replaced(self, world: Path, format_: str) -> None:
        """With --force an export replaces one of any format; nothing else is left beside it."""
        for earlier in FORMATS:
            for name, extra in ((earlier, []), (format_, ["--force"])):
                done = CliRunner().invoke(
                    app, ["export", "runs/cats", "--format", name, "--output", "set", "-q", *extra]
                )
                assert done.exit_code == 0, (done.output, done.exception)
            (shutil.rmtree if (world / "set").is_dir() else os.unlink)(world / "set")
        assert sorted(path.name for path in world.iterdir()) == ["links", "lost", "runs", "stranger"]

    @pytest.mark.parametrize("format_", ["imagefolder", "webdataset"])
    def test_a_file_beside_the_images(self, world: Path, format_: str) -> None:
        """An export to which someone has added a file, a directory or a link is not replaced."""
        export = ("export", "runs/cats", "--format", format_, "--output", "set", "-q", "--force")
        assert CliRunner().invoke(app, export).exit_code == 0

        def add_directory(path: Path) -> None:
            path.mkdir()

        def add_link(path: Path) -> None:
            path.symlink_to("/")

        additions: tuple[Callable[[Path], object], ...] = (Path.touch, add_directory, add_link)
        for add in additions:
            add(world / "set" / "mine.png")
            before = snapshot(world)
            refused(*export)
            assert snapshot(world) == before
            (world / "set" / "mine.png").rmdir() if add is add_directory else (world / "set" / "mine.png").unlink()
        assert CliRunner().invoke(app, export).exit_code == 0

    @pytest.mark.parametrize("format_", FORMATS)
    def test_the_old_export_stays_until_the_new_one_is_complete(self, world: Path, format_: str) -> None:
        """If an export with --force fails, the earlier export stays as it was."""
        for earlier in ("imagefolder", "zip"):
            CliRunner().invoke(app, ["export", "runs/cats", "--format", earlier, "--output", "set", "-q", "--force"])
            before = snapshot(world)
            image = world / "runs/cats/images/job.3.png"
            content = image.read_bytes()
            image.write_bytes(b"damaged")
            done = CliRunner().invoke(
                app, ["export", "runs/cats", "--format", format_, "--output", "set", "-q", "--force"]
            )
            image.write_bytes(content)
            if format_ != "csv":  # which contains no image
                assert isinstance(done.exception, InputError)
                assert snapshot(world) == before

    def test_a_file_that_is_added_meanwhile(self, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file that is put into the old export while the new one is written is kept, and the export fails."""
        from krea_batch.maintenance.export import run_images

        arguments = ("export", "runs/cats", "--format", "imagefolder", "--output", "set", "-q", "--force")
        assert CliRunner().invoke(app, arguments).exit_code == 0
        read = run_images.ExportedImage.read

        def read_and_add(image: run_images.ExportedImage) -> bytes:
            (world / "set" / "mine.txt").write_text("mine")
            return read(image)

        monkeypatch.setattr(run_images.ExportedImage, "read", read_and_add)
        before = snapshot(world / "set")
        refused(*arguments)
        assert snapshot(world / "set") == before | {"mine.txt": (stat.S_IFREG, b"mine")}
        assert sorted(path.name for path in world.iterdir()) == ["links", "lost", "runs", "set", "stranger"]

    @pytest.mark.parametrize("name", [".set.part", ".krea-batch-x.part"])
    def test_hidden_files_beside_the_output(self, world: Path, name: str) -> None:
        """Nothing that was beside the output is deleted, whatever its name; it may even be the run."""
        (world / "runs" / "cats").rename(world / name)
        before = snapshot(world / name)
        done = CliRunner().invoke(app, ["export", name, "--format", "zip", "--output", "set", "-q"])
        assert done.exit_code == 0, done.exception
        assert CliRunner().invoke(app, ["report", name, "--output", "page.html", "-q"]).exit_code == 0
        assert snapshot(world / name) == before

    def test_an_empty_directory(self, world: Path) -> None:
        """An empty directory may be replaced: nothing is lost."""
        (world / "set").mkdir()
        done = CliRunner().invoke(app, ["export", "runs/cats", "--format", "zip", "--output", "set", "--force"])
        assert done.exit_code == 0
        assert (world / "set").is_file()

    def test_reports(self, world: Path) -> None:
        """A report replaces a report, by default in the run directory, and an export may lie there, too."""
        for _ in range(2):
            assert CliRunner().invoke(app, ["report", "runs/cats", "-q"]).exit_code == 0
        assert (world / "runs/cats/report.html").is_file()
        done = CliRunner().invoke(app, ["export", "runs/cats", "--format", "zip", "--output", "runs/cats/set.zip"])
        assert done.exit_code == 0

    def test_images_elsewhere(self, world: Path) -> None:
        """If images/ is a link to another disk, that place is a part of the run, too."""
        (world / "runs/cats/images").rename(world / "disk")
        (world / "runs/cats/images").symlink_to(world / "disk")
        refused("export", "runs/cats", "--format", "zip", "--output", "disk/set.zip")


@pytest.mark.slow
class TestLogFiles:
    def run_with_log(self, folder: Path, log_file: str, *options: str) -> None:
        arguments = ("--simulate", "--time-scale=1000", "--poll-interval=0.1", "-q", "--log-file", log_file, "-vv")
        done = run_command("run", "jobs.jsonl", "--out", "out", *arguments, *options, cwd=folder)
        assert done.returncode == 0, done.stderr

    @pytest.mark.parametrize("log_format", ["text", "json"])
    def test_a_log_is_continued(self, tmp_path: Path, log_format: str) -> None:
        """A log of an earlier run is appended to, in either format, and only its user can read it."""
        write_jobs(tmp_path / "jobs.jsonl", 1)
        self.run_with_log(tmp_path, "out/run.log", "--log-format", log_format)
        first = (tmp_path / "out/run.log").read_bytes()
        assert stat.S_IMODE((tmp_path / "out/run.log").stat().st_mode) == 0o600
        write_jobs(tmp_path / "jobs.jsonl", 2)
        self.run_with_log(tmp_path, "out/run.log")
        assert (tmp_path / "out/run.log").read_bytes().startswith(first)
        assert len((tmp_path / "out/run.log").read_bytes()) > len(first)

    @pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/null"), Path.mkdir])
    def test_what_is_no_file(self, tmp_path: Path, make: Callable[[Path], object]) -> None:
        """A named pipe, a link and a directory are refused, and the command does not wait."""
        write_jobs(tmp_path / "jobs.jsonl", 1)
        make(tmp_path / "run.log")
        done = run_command("run", "jobs.jsonl", "--out", "out", "--simulate", "--log-file", "run.log", cwd=tmp_path)
        assert done.returncode == 2
        assert "log" in done.stderr


@pytest.mark.slow
def test_the_simulated_jobs_of_a_run(tmp_path: Path) -> None:
    """`run --simulate` appends to no stranger's simulated.jsonl, and does not follow a link from there."""
    write_jobs(tmp_path / "jobs.jsonl", 1)
    (tmp_path / "out").mkdir()
    (tmp_path / "mine.txt").write_text("mine\n")
    (tmp_path / "out/simulated.jsonl").symlink_to(tmp_path / "mine.txt")
    for _ in range(2):
        done = run_command("run", "jobs.jsonl", "--out", "out", "--simulate", "-q", cwd=tmp_path)
        assert done.returncode == 2, done.stderr
        assert (tmp_path / "mine.txt").read_text() == "mine\n"
        (tmp_path / "out/simulated.jsonl").unlink()
        (tmp_path / "out/simulated.jsonl").write_text('{"mine": 1}\n')
    assert (tmp_path / "out/simulated.jsonl").read_text() == '{"mine": 1}\n'


@pytest.mark.slow
def test_a_charged_bench(simulate: StartSimulator, tmp_path: Path) -> None:
    """A charged benchmark whose report cannot be written is refused before anything is charged."""
    (tmp_path / "report").mkdir()
    (tmp_path / "report/bench.json").write_text("mine")
    gateway = simulate("--tiny")
    options = ("--rates", "20/s", "--jobs", "1", "--yes", "--gateway", gateway.gateway_url, "--out", "report")
    done = run_command("bench", *options, cwd=tmp_path)
    assert done.returncode == 2
    assert "bench.json exists and is no file of krea-batch bench" in done.stderr
    assert gateway.admin_request("/totals")["posts"] == 0
    assert (tmp_path / "report/bench.json").read_text() == "mine"


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["../", "images/../../", "absolute"])
def test_paths_in_a_ledger(prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path in a ledger that leaves the run directory is neither exported nor repaired."""
    monkeypatch.setenv("PIXAZO_API_KEY", "k")
    monkeypatch.chdir(tmp_path)
    make_run(tmp_path / "world" / "run", SeedJob(id="one", prefix=f"{tmp_path}/" if prefix == "absolute" else prefix))
    (image,) = tmp_path.rglob("one.png")
    image.write_text("mine")
    for arguments in (("verify", "world/run", "--repair"), ("export", "world/run", "--format=zip", "-o", "set.zip")):
        done = refused(*arguments)
        assert "is not in the run directory" in str(done.exception)
    assert image.read_text() == "mine"


@pytest.mark.slow
def test_init_keeps_files(world: Path) -> None:
    """`init` writes new files only, and does not follow a link to create one."""
    (world / "project").mkdir()
    (world / "project/jobs.jsonl").symlink_to(world / "nowhere")
    (world / "project/krea-batch.toml").write_text("")
    before = snapshot(world)
    assert CliRunner().invoke(app, ["init", "project"]).exit_code == 1
    assert snapshot(world) == before
