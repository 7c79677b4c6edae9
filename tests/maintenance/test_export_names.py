"""Images in an export have the names that the user wants, each once, and in a ZIP file names that Windows takes."""

from __future__ import annotations

import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pathvalidate import is_valid_filename

from krea_batch import Job
from krea_batch.errors import InputError
from krea_batch.jobs import Outcome, State, StoredFile, check_id, check_image_name
from krea_batch.maintenance.export import ExportedImage, RunImages, export
from krea_batch.maintenance.export.image_paths import ImagePaths
from krea_batch.maintenance.export.recognition import is_export
from krea_batch.maintenance.export.writers import ExportOptions
from krea_batch.testing import ScriptedGateway, make_png, run_virtual
from tests.engine_fixtures import run_jobs
from tests.processes import run_command

JOBS = [
    Job(prompt="A fox", id="Fox", seed=1, metadata={"set": "train"}),
    Job(prompt="a fox", id="fox", seed=2, metadata={"set": "train"}, image_name="deep/er/fox"),
    Job(prompt="an owl", id="a:b?", seed=3, metadata={"set": "test/1"}),
    Job(prompt="a cat", id="NUL", seed=4, metadata={"set": "CON"}),
    Job(prompt="a dog", id="x. ", seed=5, metadata={"set": "train"}),
    Job(prompt="a cow", id="fOX", seed=6, metadata={"set": "Train"}),
]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A run of JOBS; the image of a job has its prompt in it."""
    run_virtual(run_jobs(tmp_path / "out", ScriptedGateway(), JOBS))
    return tmp_path / "out"


def names_in(output: Path) -> dict[str, str]:
    """Return the path of each job's image in an export, whose bytes are those of the job."""
    if output.is_dir() and (output / "metadata.jsonl").exists():
        files = {path.relative_to(output).as_posix(): path.read_bytes() for path in output.rglob("*.*")}
        rows = files.pop("metadata.jsonl").splitlines()
    elif output.is_dir():
        with tarfile.open(output / "shard-000000.tar") as shard:
            files = {name: shard.extractfile(name).read() for name in shard.getnames()}  # type: ignore[union-attr]
        keys = [name.removesuffix(".json") for name in files if name.endswith(".json")]
        rows = [
            json.dumps({**json.loads(files.pop(f"{key}.json")), "file_name": f"{key}.png"}).encode() for key in keys
        ]
    else:
        with zipfile.ZipFile(output) as archive:
            files = {name: archive.read(name) for name in archive.namelist()}
        rows = files.pop("metadata.jsonl").splitlines()
    parsed = [json.loads(row) for row in rows]
    assert sorted(files) == sorted(row["file_name"] for row in parsed)
    assert all(files[row["file_name"]] == make_png(text=row["prompt"].encode()) for row in parsed)
    return {row["id"]: row["file_name"] for row in parsed}


def write(out: Path, format_name: str, **options: Any) -> dict[str, str]:
    with RunImages(out) as images:
        export(images, format_name, out.parent / "export", ExportOptions(**options))
    return names_in(out.parent / "export")


def test_an_imagefolder_as_in_the_run(out: Path) -> None:
    """Without options, paths are those of the run, but no two differ in case only: one would replace the other."""
    assert write(out, "imagefolder") == {
        "Fox": "Fox.png", "fox": "deep/er/fox.png", "a:b?": "a:b?.png", "NUL": "NUL.png", "x. ": "x. .png",
        "fOX": "fOX~2.png",
    }  # fmt: skip


def test_a_zip_file_for_windows(out: Path) -> None:
    """In a ZIP file, each name is valid on Windows, and none differs from another in case only."""
    assert write(out, "zip") == {
        "Fox": "images/Fox.png", "fox": "images/deep/er/fox.png", "a:b?": "images/a_b_.png",
        "NUL": "images/NUL_.png", "x. ": "images/x.png", "fOX": "images/fOX~2.png",
    }  # fmt: skip


@pytest.mark.parametrize(("format_name", "prefix"), [("imagefolder", ""), ("webdataset", ""), ("zip", "images/")])
def test_a_template(out: Path, format_name: str, prefix: str) -> None:
    """A template names files and folders in every format that copies the images."""
    names = write(out, format_name, name="{set}/{seed:02}_{prompt}.v1")
    dot = "_" if format_name == "webdataset" else "."
    assert names == {
        "Fox": f"{prefix}train/01_a-fox{dot}v1.png", "fox": f"{prefix}train/02_a-fox{dot}v1.png",
        "a:b?": f"{prefix}test_1/03_an-owl{dot}v1.png", "NUL": f"{prefix}CON_/04_a-cat{dot}v1.png",
        "x. ": f"{prefix}train/05_a-dog{dot}v1.png", "fOX": f"{prefix}Train/06_a-cow{dot}v1.png",
    }  # fmt: skip


@pytest.mark.parametrize("format_name", ["imagefolder", "webdataset", "zip"])
def test_names_that_are_taken(out: Path, format_name: str) -> None:
    """Images of one name are numbered, and none replaces another."""
    names = write(out, format_name, name="{width}")
    prefix = "images/" if format_name == "zip" else ""
    assert list(names.values()) == [f"{prefix}4.png", *(f"{prefix}4~{n}.png" for n in range(2, 7))]


def test_portable_names(out: Path) -> None:
    """Portable names are lower-case ASCII without spaces, also those after one that was taken."""
    assert write(out, "imagefolder", portable_names=True) == {
        "Fox": "fox.png", "fox": "deep/er/fox.png", "a:b?": "a-b.png", "NUL": "nul_.png", "x. ": "x.png",
        "fOX": "fox-2.png",
    }  # fmt: skip


@pytest.mark.parametrize(("name", "message"), [
    ("{place}", "job 'Fox': no \"place\" for the name of the image; there are set, id, prompt"),
    ("../{id}", "empty part"),
    ("x", "has no field"),
])  # fmt: skip
def test_a_template_that_does_not_fit(out: Path, name: str, message: str) -> None:
    """An invalid template, or one that names what an image does not have, leaves no output."""
    with pytest.raises(InputError) as raised:
        write(out, "imagefolder", name=name)
    assert message in str(raised.value)
    assert sorted(path.name for path in out.parent.iterdir()) == ["out"]


def test_an_export_with_folders_is_replaced(out: Path) -> None:
    """--force replaces an export with folders, unless someone has put a file or a folder into it."""
    output = out.parent / "export"
    write(out, "imagefolder", name="{set}/{id}")
    assert is_export(output)
    write(out, "imagefolder", name="{id}", force=True)
    write(out, "imagefolder", name="{set}/{id}", force=True)
    (output / "train/mine").mkdir()
    assert not is_export(output)
    (output / "train/mine/notes.txt").write_text("mine")
    assert not is_export(output)
    with pytest.raises(InputError, match="has other files in it"):
        write(out, "imagefolder", force=True)


def test_the_command(out: Path) -> None:
    """The options of the command are those of the export, and csv refuses them."""
    command = ("export", out, "--output", "export", "--name", "{set}/{id} {number}", "--portable-names")
    assert run_command(*command, "--format", "csv", cwd=out.parent).returncode == 2
    done = run_command(*command, "--format", "zip", cwd=out.parent)
    assert done.returncode == 0, done.stderr
    names = names_in(out.parent / "export")
    assert names["Fox"] == "images/train/fox-1.png"
    assert names["a:b?"] == "images/test_1/a_b_-3.png"


NAMES = st.one_of(
    st.text(min_size=1, max_size=30), st.text(alphabet="aA. :~2-\u00e9\u0301/NUL", min_size=1, max_size=8)
)


@given(names=st.lists(NAMES, max_size=12), portable=st.booleans(), template=st.sampled_from(["", "{x}", "{x}/a{id}"]))
def test_any_names_are_unique_and_valid_on_windows(names: list[str], portable: bool, template: str) -> None:
    """Whatever the names in the run are, those in a ZIP file differ in more than case and are valid on Windows."""
    paths = ImagePaths(template, portable=portable, is_safe=True)
    found = []
    for number, name in enumerate(names, 1):
        try:
            check_image_name(name) if "/" in name else check_id(name)
            file = StoredFile(f"images/{name}.png", 1, "", 1, 1, "image/png")
            outcome = Outcome(
                id=name, status=State.SUCCEEDED, request_id=None, files=(file,), error=None, request={"prompt": "a"},
                metadata={"x": name}, polls=0, attempts=1, submitted_at=None, accepted_at=None, finished_at=None,
                stored_at=None,
            )  # fmt: skip
            found.append(paths.path_of(ExportedImage(number, outcome, file, Path(file.path))))
        except (ValueError, InputError):
            continue
    assert len({path.casefold() for path in found}) == len(found)
    for path in found:
        assert all(is_valid_filename(part, platform="windows") and part == part.strip() for part in path.split("/"))
