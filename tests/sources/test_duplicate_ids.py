"""Test that lines with the same id are found in bounded memory."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krea_batch.errors import InputError
from krea_batch.sources import duplicate_ids
from krea_batch.sources.duplicate_ids import DuplicateIdFinder, default_id
from krea_batch.sources.hash_buckets import BUCKET_COUNT, BUCKET_ITEMS


def candidates_of(finder: DuplicateIdFinder) -> list[int]:
    candidates = sorted(number for numbers in finder.candidates() for number in numbers)
    finder.close()
    return candidates


@given(st.lists(st.sampled_from("abcdefghij") | st.text(max_size=5)))
def test_every_repeated_id_is_a_candidate(ids: list[str]) -> None:
    """Every line that shares its id with another is a candidate, including the first of them."""
    finder = DuplicateIdFinder()
    for number, job_id in enumerate(ids, 1):
        finder.add(job_id, number)
    repeated = {number for number, job_id in enumerate(ids, 1) if ids.count(job_id) > 1}
    assert repeated <= set(candidates_of(finder))


def test_full_buckets_are_written_to_a_file(tmp_path: Path) -> None:
    """Full buckets are written to an unnamed temporary file and read back without loss."""
    finder = DuplicateIdFinder(tmp_path)
    count = BUCKET_COUNT * BUCKET_ITEMS
    for number in range(1, count + 1):
        finder.add(f"job-{number}", number)
    for number in (1, 500, count):
        finder.add(f"job-{number}", count + number)
    assert not list(tmp_path.iterdir())
    assert candidates_of(finder) == [1, 500, count, count + 1, count + 500, 2 * count]


def test_equal_hashes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Different ids with the same hash are candidates; the caller compares them."""
    monkeypatch.setattr(duplicate_ids, "hash", lambda _: -(2**63), raising=False)
    finder = DuplicateIdFinder()
    finder.add("a", 1)
    finder.add("b", 2)
    assert candidates_of(finder) == [1, 2]


def test_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A temporary directory that cannot be used raises InputError, and the hint names TMPDIR."""
    monkeypatch.setattr(duplicate_ids, "hash", lambda _: 0, raising=False)
    finder = DuplicateIdFinder(tmp_path / "none")
    for number in range(BUCKET_ITEMS // 2 - 1):  # an id and a number are two items
        finder.add("x", number)
    with pytest.raises(InputError, match="TMPDIR"):
        finder.add("x", 0)
    finder.close()


def test_default_ids() -> None:
    """A default id is the line number with at least five digits."""
    assert [default_id(number) for number in (1, 42, 99_999, 1_000_000)] == ["00001", "00042", "99999", "1000000"]
