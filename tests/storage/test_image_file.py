"""Tests of pipeline.picture: a file that ends in .png is whole, and nobody else's."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from krea_batch.jobs import StoredFile
from krea_batch.storage.image_file import ImageFile, PngError, commit_many
from krea_batch.testing.scripted_gateway import make_png

CAT = make_png(text=b"cat")
DOG = make_png(5, 5, text=b"dog, and more")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path


def names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "images").iterdir())


def parts(out: Path) -> list[Path]:
    return [path for path in (out / "images").iterdir() if path.suffix == ".part"]


def finished(picture: ImageFile, last: Sequence[bytes]) -> StoredFile:
    """The row of one picture, or what went wrong with it."""
    (answer,) = commit_many([(picture, last)])
    if not isinstance(answer, StoredFile):
        raise answer
    return answer


def whole(out: Path, stored: StoredFile, data: bytes) -> bool:
    """What is on disk is exactly this picture, and its row says so."""
    on_disk = (out / stored.path).read_bytes()
    return on_disk == data and stored.sha256 == hashlib.sha256(data).hexdigest() and stored.bytes == len(data)


class TestWhole:
    @pytest.mark.parametrize("size", [1, 7, 8, 33, 10_000])
    def test_in_pieces_of_any_size(self, out: Path, size: int) -> None:
        """However the bytes come in, the file holds them, and the row says size, hash and pixels."""
        picture = ImageFile(out, "x", 1)
        pieces = [DOG[at : at + size] for at in range(0, len(DOG), size)]
        for piece in pieces[:-1]:
            picture.write([piece])
        stored = finished(picture, pieces[-1:])
        assert whole(out, stored, DOG)
        assert (stored.path, stored.width, stored.height) == ("images/x.png", 5, 5)
        assert names(out) == ["x.png"]

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"<html>404</html>",
            CAT[:-1],
            CAT[:50],
            CAT[:40] + b"?" + CAT[41:],
            CAT + b"\n",
            CAT + CAT,
            b"\xff\xd8\xff\xe0 a JPEG",
        ],
        ids=["nothing", "HTML", "one byte short", "cut", "a wrong byte", "trailing", "twice", "JPEG"],
    )
    def test_what_is_not_whole_gets_no_name(self, out: Path, body: bytes) -> None:
        """Bytes that are not one whole PNG are refused, and no .png appears."""
        with pytest.raises(PngError):
            finished(ImageFile(out, "x", 1), [body])
        assert not [name for name in names(out) if name.endswith(".png")]

    def test_start_over(self, out: Path) -> None:
        """After starting over nothing of the first try is in the file."""
        picture = ImageFile(out, "x", 1)
        picture.write([DOG[:60]])
        picture.start_over()
        assert whole(out, finished(picture, [CAT]), CAT)

    def test_the_part_of_a_dead_run_is_not_gone_on_with(self, out: Path) -> None:
        """What a killed process left in the .part does not get into the picture."""
        dead = ImageFile(out, "x", 1)
        dead.write([DOG[:60]])
        picture = ImageFile(out, "x", 1)
        picture.write([CAT[:30]])
        assert whole(out, finished(picture, [CAT[30:]]), CAT)
        assert names(out) == ["x.png"]

    def test_no_file_stays_open(self, out: Path) -> None:
        """A picture that is dropped between two pieces holds no file open."""
        before = len(os.listdir("/proc/self/fd"))
        for n in range(10):
            ImageFile(out, f"x{n}", n).write([CAT[:50]])
        assert len(os.listdir("/proc/self/fd")) == before


class TestOthersFiles:
    @pytest.mark.parametrize("theirs", [b"mine!", CAT[:-1] + b"?", b""], ids=["other", "same size", "empty"])
    def test_somebody_elses_file_stays(self, out: Path, theirs: bytes) -> None:
        """A file of the name that does not hold these bytes is never touched; the picture takes another name."""
        (out / "images" / "x.png").write_bytes(theirs)
        stored = finished(ImageFile(out, "x", 1), [CAT])
        assert (out / "images" / "x.png").read_bytes() == theirs
        assert stored.path == "images/x~2.png"
        assert whole(out, stored, CAT)

    def test_our_own_is_adopted(self, out: Path) -> None:
        """A file of the same bytes is ours, from a crash between rename and ledger: no second copy is made."""
        for _ in range(2):
            stored = finished(ImageFile(out, "x", 1), [CAT])
            assert stored.path == "images/x.png"
            assert whole(out, stored, CAT)
            assert names(out) == ["x.png"]

    @pytest.mark.parametrize("there", [True, False], ids=["to a file", "to nothing"])
    def test_a_symlink_of_the_name_stays(self, out: Path, there: bool) -> None:
        """A symlink in the place of the picture is neither followed nor replaced."""
        target = out / "target"
        if there:
            target.write_bytes(CAT)
        (out / "images" / "x.png").symlink_to(target)
        stored = finished(ImageFile(out, "x", 1), [CAT])
        assert stored.path == "images/x~2.png"
        assert (out / "images" / "x.png").is_symlink()
        assert target.exists() == there

    @pytest.mark.parametrize("when", ["before", "between"])
    def test_a_symlink_of_the_part_is_not_followed(self, out: Path, when: str) -> None:
        """Nothing is written through a symlink in the place of the .part, whenever it was put there."""
        target = out / "target"
        target.write_bytes(b"precious")
        picture = ImageFile(out, "x", 1)
        picture.write([CAT[:50]])
        (part,) = parts(out)
        part.unlink()
        part.symlink_to(target)
        if when == "between":
            with pytest.raises(OSError, match="symbolic"):
                finished(picture, [CAT[50:]])
        else:
            assert whole(out, finished(ImageFile(out, "x", 1), [CAT]), CAT)
        assert target.read_bytes() == b"precious"
        assert not (out / "images" / "x.png").is_symlink()

    def test_a_folder_of_the_name_stays(self, out: Path) -> None:
        """Not even a folder in the place of the picture stops it."""
        (out / "images" / "x.png").mkdir()
        assert finished(ImageFile(out, "x", 1), [CAT]).path == "images/x~2.png"


class TestTwoOfOneName:
    """The second picture of job `a` and the first of job `a-2` have one name."""

    @pytest.mark.parametrize("first_ends", [True, False])
    def test_their_parts_are_apart(self, out: Path, first_ends: bool) -> None:
        """Both may stream at once; each ends whole, under its own name."""
        second_of_a, a_2 = ImageFile(out, "a-2", 1), ImageFile(out, "a-2", 2)
        second_of_a.write([CAT[:40]])
        a_2.write([DOG[:50]])
        if first_ends:
            cat = finished(second_of_a, [CAT[40:]])
            dog = finished(a_2, [DOG[50:]])
        else:
            dog = finished(a_2, [DOG[50:]])
            cat = finished(second_of_a, [CAT[40:]])
        assert whole(out, cat, CAT)
        assert whole(out, dog, DOG)
        assert names(out) == ["a-2.png", "a-2~2.png"]

    def test_they_do_not_claim_the_name_together(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two threads that look for a free name at the same moment do not end with the same one."""
        both_look = threading.Barrier(2)
        lexists = os.path.lexists

        def looks(path: Any) -> bool:
            found = lexists(path)
            try:
                both_look.wait(0.05)
            except threading.BrokenBarrierError:
                pass  # the other one has to wait: as it should be
            return found

        monkeypatch.setattr(os.path, "lexists", looks)
        with ThreadPoolExecutor(2) as threads:
            cat = threads.submit(finished, ImageFile(out, "a-2", 1), [CAT])
            dog = threads.submit(finished, ImageFile(out, "a-2", 2), [DOG])
            assert whole(out, cat.result(), CAT)
            assert whole(out, dog.result(), DOG)
        assert names(out) == ["a-2.png", "a-2~2.png"]
