"""A file that ends in .png is complete, and no foreign file is overwritten."""

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
from krea_batch.storage.image_file import ImageError, ImageFile, commit_many
from krea_batch.testing import make_png

CAT_PNG = make_png(text=b"cat")
DOG_PNG = make_png(5, 5, text=b"dog, and more")


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "images").mkdir()
    return tmp_path


def image_names(out: Path) -> list[str]:
    return sorted(path.name for path in (out / "images").iterdir())


def part_names(out: Path) -> list[Path]:
    return [path for path in (out / "images").iterdir() if path.suffix == ".part"]


def finish_or_error(image: ImageFile, last_chunk: Sequence[bytes]) -> StoredFile:
    """Commit one image and return its record. Raises ImageError, OSError."""
    (result,) = commit_many([(image, last_chunk)])
    if not isinstance(result, StoredFile):
        raise result
    return result


def is_stored(out: Path, stored: StoredFile, data: bytes) -> bool:
    """Return whether the file has exactly these bytes, and the record their hash and size."""
    on_disk = (out / stored.path).read_bytes()
    return on_disk == data and stored.sha256 == hashlib.sha256(data).hexdigest() and stored.bytes == len(data)


class TestCompleteImages:
    @pytest.mark.parametrize("size", [1, 7, 8, 33, 10_000])
    def test_chunks_of_any_size(self, out: Path, size: int) -> None:
        """With chunks of any size, the file has all bytes, and the record has size, hash and dimensions."""
        image = ImageFile(out, "x", 1)
        chunks = [DOG_PNG[start : start + size] for start in range(0, len(DOG_PNG), size)]
        for chunk in chunks[:-1]:
            image.write([chunk])
        stored = finish_or_error(image, chunks[-1:])
        assert is_stored(out, stored, DOG_PNG)
        assert (stored.path, stored.width, stored.height) == ("images/x.png", 5, 5)
        assert image_names(out) == ["x.png"]

    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"<html>404</html>",
            CAT_PNG[:-1],
            CAT_PNG[:50],
            CAT_PNG[:40] + b"?" + CAT_PNG[41:],
            CAT_PNG + b"\n",
            CAT_PNG + CAT_PNG,
            b"\xff\xd8\xff\xe0 a JPEG",
        ],
        ids=["nothing", "HTML", "one byte short", "cut", "a wrong byte", "trailing", "twice", "JPEG"],
    )
    def test_an_incomplete_image_gets_no_name(self, out: Path, body: bytes) -> None:
        """Bytes that are not one complete PNG raise ImageError, and no file gets the name of an image."""
        with pytest.raises(ImageError):
            finish_or_error(ImageFile(out, "x", 1), [body])
        assert part_names(out) == [out / "images" / name for name in image_names(out)]

    def test_start_over(self, out: Path) -> None:
        """After `start_over`, the file has no bytes of the first attempt."""
        image = ImageFile(out, "x", 1)
        image.write([DOG_PNG[:60]])
        image.start_over()
        assert is_stored(out, finish_or_error(image, [CAT_PNG]), CAT_PNG)

    def test_a_stale_part_file_is_not_resumed(self, out: Path) -> None:
        """The bytes in the .part file of a killed process do not get into the image."""
        killed = ImageFile(out, "x", 1)
        killed.write([DOG_PNG[:60]])
        image = ImageFile(out, "x", 1)
        image.write([CAT_PNG[:30]])
        assert is_stored(out, finish_or_error(image, [CAT_PNG[30:]]), CAT_PNG)
        assert image_names(out) == ["x.png"]

    def test_no_file_stays_open(self, out: Path) -> None:
        """An image that is dropped between two writes keeps no file open."""
        before = len(os.listdir("/proc/self/fd"))
        for n in range(10):
            ImageFile(out, f"x{n}", n).write([CAT_PNG[:50]])
        assert len(os.listdir("/proc/self/fd")) == before


class TestForeignFiles:
    @pytest.mark.parametrize("foreign", [b"mine!", CAT_PNG[:-1] + b"?", b""], ids=["other", "same size", "empty"])
    def test_a_foreign_file_stays(self, out: Path, foreign: bytes) -> None:
        """A file of the same name with other bytes is not changed. The image gets another name."""
        (out / "images" / "x.png").write_bytes(foreign)
        stored = finish_or_error(ImageFile(out, "x", 1), [CAT_PNG])
        assert (out / "images" / "x.png").read_bytes() == foreign
        assert stored.path == "images/x~2.png"
        assert is_stored(out, stored, CAT_PNG)

    def test_our_own_is_adopted(self, out: Path) -> None:
        """A file with the same bytes is ours, from a crash between rename and ledger. No second copy is made."""
        for _ in range(2):
            stored = finish_or_error(ImageFile(out, "x", 1), [CAT_PNG])
            assert stored.path == "images/x.png"
            assert is_stored(out, stored, CAT_PNG)
            assert image_names(out) == ["x.png"]

    @pytest.mark.parametrize("exists", [True, False], ids=["to a file", "to nothing"])
    def test_a_symlink_of_the_name_stays(self, out: Path, exists: bool) -> None:
        """A symbolic link with the name of the image is neither followed nor replaced."""
        target = out / "target"
        if exists:
            target.write_bytes(CAT_PNG)
        (out / "images" / "x.png").symlink_to(target)
        stored = finish_or_error(ImageFile(out, "x", 1), [CAT_PNG])
        assert stored.path == "images/x~2.png"
        assert (out / "images" / "x.png").is_symlink()
        assert target.exists() == exists

    @pytest.mark.parametrize("when", ["before", "between"])
    def test_a_symlink_at_the_part_path_is_not_followed(self, out: Path, when: str) -> None:
        """Nothing is written through a symbolic link at the path of the .part file, before or between writes."""
        target = out / "target"
        target.write_bytes(b"precious")
        image = ImageFile(out, "x", 1)
        image.write([CAT_PNG[:50]])
        (part,) = part_names(out)
        part.unlink()
        part.symlink_to(target)
        if when == "between":
            with pytest.raises(OSError, match="symbolic"):
                finish_or_error(image, [CAT_PNG[50:]])
        else:
            assert is_stored(out, finish_or_error(ImageFile(out, "x", 1), [CAT_PNG]), CAT_PNG)
        assert target.read_bytes() == b"precious"
        assert not (out / "images" / "x.png").is_symlink()

    def test_a_folder_of_the_name_stays(self, out: Path) -> None:
        """If a directory has the name of the image, the image gets another name."""
        (out / "images" / "x.png").mkdir()
        assert finish_or_error(ImageFile(out, "x", 1), [CAT_PNG]).path == "images/x~2.png"


class TestNameCollisions:
    """The second image of job `a` and the first image of job `a-2` have the same preferred name."""

    @pytest.mark.parametrize("first_ends", [True, False])
    def test_their_part_files_differ(self, out: Path, first_ends: bool) -> None:
        """Both can be downloaded in parallel. Each is complete and has its own name."""
        second_of_a, a_2 = ImageFile(out, "a-2", 1), ImageFile(out, "a-2", 2)
        second_of_a.write([CAT_PNG[:40]])
        a_2.write([DOG_PNG[:50]])
        if first_ends:
            cat = finish_or_error(second_of_a, [CAT_PNG[40:]])
            dog = finish_or_error(a_2, [DOG_PNG[50:]])
        else:
            dog = finish_or_error(a_2, [DOG_PNG[50:]])
            cat = finish_or_error(second_of_a, [CAT_PNG[40:]])
        assert is_stored(out, cat, CAT_PNG)
        assert is_stored(out, dog, DOG_PNG)
        assert image_names(out) == ["a-2.png", "a-2~2.png"]

    def test_they_do_not_claim_the_name_together(self, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two threads that look for a free name at the same moment do not take the same one."""
        both_checked = threading.Barrier(2)
        lexists = os.path.lexists

        def wait_for_other_thread(path: Any) -> bool:
            exists = lexists(path)
            try:
                both_checked.wait(0.05)
            except threading.BrokenBarrierError:
                pass  # the other thread waits for the lock, as it should
            return exists

        monkeypatch.setattr(os.path, "lexists", wait_for_other_thread)
        with ThreadPoolExecutor(2) as threads:
            cat = threads.submit(finish_or_error, ImageFile(out, "a-2", 1), [CAT_PNG])
            dog = threads.submit(finish_or_error, ImageFile(out, "a-2", 2), [DOG_PNG])
            assert is_stored(out, cat.result(), CAT_PNG)
            assert is_stored(out, dog.result(), DOG_PNG)
        assert image_names(out) == ["a-2.png", "a-2~2.png"]
