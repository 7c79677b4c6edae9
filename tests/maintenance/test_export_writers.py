"""Test that common libraries load exported images, and that these are the images of the run."""

from __future__ import annotations

import csv
import gc
import hashlib
import json
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from krea_batch.errors import InputError, RunDirError
from krea_batch.maintenance.export import WRITERS, RunImages, export, writers
from krea_batch.maintenance.export.writers import ExportOptions
from tests.gallery.gallery_fixtures import SeedJob, make_run
from tests.maintenance.conftest import FINISHED_RUN_PROMPTS
from tests.processes import PROCESS_TIMEOUT_S, clean_environment, run_command

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Keep Hugging Face's libraries off the network, and their cache in the test's directory."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def run_export(*arguments: str | Path, cwd: Path, **extra_options: Any) -> subprocess.CompletedProcess[str]:
    """Run `export`, and check that it succeeds."""
    done = run_command("export", *arguments, cwd=cwd, **extra_options)
    assert done.returncode == 0, done.stderr
    return done


def pixels(path: Path) -> bytes:
    with Image.open(path) as image:
        return image.convert("RGB").tobytes()


def original_pixels(out: Path) -> dict[str, bytes]:
    """Return the pixels of each job's image, by job id."""
    return {path.stem: pixels(path) for path in (out / "images").glob("*.png")}


class TestExportFormats:
    def test_imagefolder(self, finished_run: Path, tmp_path: Path) -> None:
        """The datasets library loads the folder; prompts, ids and pixels are those of the run."""
        done = run_export(finished_run, "--format", "imagefolder", "--output", "set", cwd=tmp_path)
        assert done.stdout == "4 images in set\n"
        rows = datasets.load_dataset("imagefolder", data_dir=str(tmp_path / "set"), split="train")
        self.check_rows(rows, finished_run)

    def test_parquet(self, finished_run: Path, tmp_path: Path) -> None:
        """The datasets library recognizes the image column by the schema, and pyarrow reads the file."""
        run_export(finished_run, "--format", "parquet", "--output", "set.parquet", cwd=tmp_path)
        rows = datasets.load_dataset("parquet", data_files=str(tmp_path / "set.parquet"), split="train")
        assert isinstance(rows.features["image"], datasets.Image)
        self.check_rows(rows, finished_run)
        table = pq.read_table(tmp_path / "set.parquet")
        assert table["prompt"].to_pylist() == FINISHED_RUN_PROMPTS
        assert table["seed"].to_pylist() == [2**63, 2**63 + 1, 2**63 + 2, None]
        assert [json.loads(text) for text in table["metadata"].to_pylist()][1] == {"set": 1, "tags": ["x"]}

    def check_rows(self, rows: Any, out: Path) -> None:
        assert [row["prompt"] for row in rows] == FINISHED_RUN_PROMPTS
        expected = original_pixels(out)
        assert {row["id"]: row["image"].convert("RGB").tobytes() for row in rows} == expected

    @pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves its shards open
    def test_webdataset(self, finished_run: Path, tmp_path: Path) -> None:
        """The webdataset library reads the shards; dots in ids do not split its keys."""
        run_export(finished_run, "--format", "webdataset", "--output", "set", "--shard-size", "3", cwd=tmp_path)
        shards = sorted(str(path) for path in (tmp_path / "set").iterdir())
        assert [Path(shard).name for shard in shards] == ["shard-000000.tar", "shard-000001.tar"]
        rows = list(webdataset.WebDataset(shards, shardshuffle=False).decode())
        assert [row["json"]["prompt"] for row in rows] == FINISHED_RUN_PROMPTS
        assert [row["json"]["metadata"]["set"] for row in rows] == [0, 1, 0, 1]
        raw = list(webdataset.WebDataset(shards, shardshuffle=False))
        assert [hashlib.sha256(row["png"]).hexdigest() for row in raw] == [row["json"]["sha256"] for row in rows]
        gc.collect()

    def test_csv(self, finished_run: Path, tmp_path: Path) -> None:
        """There is one row per image and one column per metadata key; paths are those of the run's images."""
        run_export(finished_run, "--format", "csv", "--output", "set.csv", "--raw-cells", cwd=tmp_path)
        with (tmp_path / "set.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert [row["prompt"] for row in rows] == FINISHED_RUN_PROMPTS
        assert [row["metadata.set"] for row in rows] == ["0", "1", "0", "1"]
        assert rows[0]["metadata.tags"] == '["x"]'
        assert {Path(row["path"]) for row in rows} == set((finished_run / "images").glob("*.png"))

    def test_csv_for_spreadsheets(self, finished_run: Path, tmp_path: Path) -> None:
        """A prompt that a spreadsheet would evaluate begins with an apostrophe, and the command says so."""
        done = run_export(finished_run, "--format", "csv", "--output", "set.csv", cwd=tmp_path)
        assert "1 cell has an apostrophe" in done.stderr
        with (tmp_path / "set.csv").open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows[1]["prompt"] == "'" + FINISHED_RUN_PROMPTS[1]
        assert [row["prompt"] for row in rows if not row["prompt"].startswith("'")] == [
            prompt for prompt in FINISHED_RUN_PROMPTS if not prompt.startswith("=")
        ]
        run_export(finished_run, "--format", "csv", "--output", "quiet.csv", "-q", cwd=tmp_path)
        assert (tmp_path / "quiet.csv").read_bytes() == (tmp_path / "set.csv").read_bytes()

    def test_zip(self, finished_run: Path, tmp_path: Path) -> None:
        """The file contains the images byte for byte, and one metadata row for each."""
        run_export(finished_run, "--format", "zip", "--output", "set.zip", cwd=tmp_path)
        with zipfile.ZipFile(tmp_path / "set.zip") as file:
            assert file.testzip() is None
            rows = [json.loads(line) for line in file.read("metadata.jsonl").splitlines()]
            assert [row["prompt"] for row in rows] == FINISHED_RUN_PROMPTS
            for row in rows:
                assert hashlib.sha256(file.read(row["file_name"])).hexdigest() == row["sha256"]

    def test_embedded_metadata(self, finished_run: Path, tmp_path: Path) -> None:
        """Pixels are unchanged, Pillow reads the embedded texts, and `inspect` prints them."""
        run_export(finished_run, "--format", "imagefolder", "--output", "set", "--embed-metadata", cwd=tmp_path)
        for n, prompt in enumerate(FINISHED_RUN_PROMPTS):
            path = tmp_path / "set" / f"job.{n}.png"
            assert pixels(path) == original_pixels(finished_run)[f"job.{n}"]
            with PngImageFile(path) as image:
                image.load()
                assert image.text["Description"] == prompt
                assert json.loads(image.text["krea-batch"])["request"]["prompt"] == prompt
        inspected = run_command("inspect", "set/job.0.png", cwd=tmp_path)
        assert inspected.returncode == 0
        assert "Description" in inspected.stdout
        assert "a cat" in inspected.stdout
        as_json = run_command("inspect", "--json", "set/job.2.png", cwd=tmp_path)
        assert json.loads(as_json.stdout)["texts"]["Description"] == FINISHED_RUN_PROMPTS[2]

    def test_ids_from(self, finished_run: Path, tmp_path: Path) -> None:
        """Only the listed jobs are exported, from a file or standard input; an unknown id is an error."""
        (tmp_path / "ids").write_text("job.3\njob.0\n")
        run_export(finished_run, "--format", "zip", "--output", "a.zip", "--ids-from", "ids", cwd=tmp_path)
        with zipfile.ZipFile(tmp_path / "a.zip") as file:
            assert sorted(file.namelist()) == ["images/job.0.png", "images/job.3.png", "metadata.jsonl"]
        run_export(
            finished_run, "--format", "zip", "--output", "b.zip", "--ids-from", "-", cwd=tmp_path, stdin=b"job.1\n"
        )
        done = run_command(
            "export",
            finished_run,
            "--format=zip",
            "--output=c.zip",
            "--ids-from=-",
            cwd=tmp_path,
            stdin=b"job.9\njob.1\n",
        )
        assert done.returncode == 2
        assert "standard input:1: the job 'job.9' is not in this run" in done.stderr
        assert not (tmp_path / "c.zip").exists()


LIVE_CELLS = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(1)",
    "\t=1",
    "\r=1",
    "\n=1",
    "  =1",
    "\u00a0=1",
    "＝1",
    "＋1",
    "－1",
    "＠x",
    "'=1",
    "'",
]
PLAIN_CELLS = ["a cat", "1", "a=1", "1-1", "é", "", "(=1)", '"=1']


class TestCells:
    def written(self, tmp_path: Path, texts: list[str], **options: Any) -> list[dict[str, str]]:
        """Export jobs with these prompts, ids and metadata, and return the rows of the CSV."""
        jobs = [
            SeedJob(
                id=f"{text.strip() or 'x'}{n}".replace("\r", ""), prompt=text or "x", metadata={"=key": text, "n": -n}
            )
            for n, text in enumerate(texts)
        ]
        with RunImages(make_run(tmp_path / "out", *jobs)) as images:
            export(images, "csv", tmp_path / "set.csv", ExportOptions(**options))
        with (tmp_path / "set.csv").open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))

    def test_live_cells(self, tmp_path: Path) -> None:
        """Each text that a spreadsheet would evaluate has one apostrophe more: prompt, id and metadata."""
        for row, text in zip(self.written(tmp_path, LIVE_CELLS), LIVE_CELLS, strict=True):
            assert row["prompt"] == row["metadata.=key"] == f"'{text}"
            assert row["id"][0] == "'"

    def test_plain_cells(self, tmp_path: Path) -> None:
        """Other texts, and numbers, stay as they are."""
        for n, (row, text) in enumerate(zip(self.written(tmp_path, PLAIN_CELLS), PLAIN_CELLS, strict=True)):
            assert (row["prompt"], row["metadata.=key"], row["metadata.n"]) == (text or "x", text, str(-n))

    def test_raw_cells(self, tmp_path: Path) -> None:
        """With raw cells every text is as it was."""
        rows = self.written(tmp_path, LIVE_CELLS, raw_cells=True)
        assert [row["prompt"] for row in rows] == LIVE_CELLS

    @given(text=st.text(st.sampled_from("'=+-@\t a＝\u00a0"), min_size=1, max_size=6))
    def test_the_text_can_be_restored(self, text: str) -> None:
        """Removing the first apostrophe of a cell always gives the text back."""
        cell = f"'{text}" if writers._EVALUATED.match(text) else text
        assert cell.removeprefix("'") == text
        assert not cell.lstrip().startswith(("=", "+", "-", "@", "＝"))

    def test_only_with_csv(self, finished_run: Path, tmp_path: Path) -> None:
        """`--raw-cells` is an error with the other formats, which have texts as they are."""
        done = run_command("export", finished_run, "--format=zip", "--output=x", "--raw-cells", cwd=tmp_path)
        assert (done.returncode, "--raw-cells can be used with csv only" in done.stderr) == (2, True)


class TestExportErrors:
    def test_existing_output_is_kept(self, finished_run: Path, tmp_path: Path) -> None:
        """An existing export is replaced only with --force, and anything else never."""
        arguments = (finished_run, "--format", "imagefolder", "--output", "set")
        run_export(*arguments, cwd=tmp_path)
        inode = (tmp_path / "set").stat().st_ino
        done = run_command("export", *arguments, cwd=tmp_path)
        assert (done.returncode, (tmp_path / "set").stat().st_ino) == (2, inode)
        assert "add --force" in done.stderr
        run_export(*arguments, "--force", cwd=tmp_path)
        assert (tmp_path / "set").stat().st_ino != inode
        (tmp_path / "set" / "mine").write_text("x")
        done = run_command("export", *arguments, "--force", cwd=tmp_path)
        assert (done.returncode, (tmp_path / "set" / "mine").exists()) == (2, True)
        assert "use another --output" in done.stderr

    @pytest.mark.parametrize("name", list(WRITERS))
    def test_damaged_image(self, finished_run: Path, tmp_path: Path, name: str) -> None:
        """An image that differs from the ledger is never exported, and no output is left."""
        out = tmp_path / "out"
        shutil.copytree(finished_run, out)
        (out / "images" / "job.1.png").write_bytes(b"not an image")
        with RunImages(out) as run_images:
            if name == "csv":  # CSV contains no image, so none is read.
                assert export(run_images, name, tmp_path / "set", ExportOptions()) == 4
                return
            with pytest.raises(
                InputError, match=r"job\.1\.png differs from the ledger; see krea-batch verify OUT --repair"
            ):
                export(run_images, name, tmp_path / "set", ExportOptions())
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]

    def test_not_a_run_directory(self, tmp_path: Path) -> None:
        """A directory without a run raises RunDirError, and nothing is created in it."""
        with pytest.raises(RunDirError, match="not a run directory"):
            RunImages(tmp_path)
        assert not list(tmp_path.iterdir())

    def test_embedding_in_a_csv(self, finished_run: Path, tmp_path: Path) -> None:
        """`--embed-metadata` is an error with csv, since a CSV does not copy images."""
        done = run_command("export", finished_run, "--format=csv", "--output=x", "--embed-metadata", cwd=tmp_path)
        assert done.returncode == 2
        assert "--embed-metadata cannot be used with csv" in done.stderr

    def test_run_is_not_changed(self, finished_run: Path, tmp_path: Path) -> None:
        """An export changes, creates and deletes no file of the run."""

        def file_contents() -> dict[str, bytes]:
            return {str(path): path.read_bytes() for path in finished_run.rglob("*") if path.is_file()}

        before = file_contents()
        run_export(finished_run, "--format", "zip", "--output", "a.zip", cwd=tmp_path)
        assert file_contents() == before


STUCK_EXPORT_SCRIPT = """
import signal
from krea_batch.maintenance.export import run_images
read = run_images.ExportedImage.read
images_read = []
def read_once(self):
    print("reading", flush=True)
    if images_read:
        signal.pause()
    images_read.append(self)
    return read(self)
run_images.ExportedImage.read = read_once
from krea_batch.cli.app import main
main()
"""


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "csv"])
def test_killed_during_export(finished_run: Path, tmp_path: Path, name: str) -> None:
    """After kill -9 there is no output; the next export succeeds, and names the part that was left."""
    arguments = ["export", str(finished_run), "--format", name, "--output", "set"]
    process = subprocess.Popen(
        [sys.executable, "-c", STUCK_EXPORT_SCRIPT, *arguments],
        cwd=tmp_path,
        env=clean_environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    for _ in range(2):
        assert process.stdout.readline() == "reading\n"
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=PROCESS_TIMEOUT_S)
    assert not (tmp_path / "set").exists()
    (part,) = tmp_path.glob(".krea-batch-*.part")
    done = run_export(finished_run, "--format", name, "--output", "set", cwd=tmp_path)
    assert f"{part.name} was left by an export that was killed" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.name != "cache") == [part.name, "set"]
