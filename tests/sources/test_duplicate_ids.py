"""Ids go in; lines whose ids may be the same come out."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krea_batch.errors import InputError
from krea_batch.sources import duplicate_ids
from krea_batch.sources.duplicate_ids import BUCKET_COUNT, BUCKET_ITEMS, DuplicateIdFinder, default_id


def candidates_of(finder: DuplicateIdFinder) -> list[int]:
    candidates = sorted(number for numbers in finder.candidates() for number in numbers)
    finder.close()
    return candidates


@given(st.lists(st.sampled_from("abcdefghij") | st.text(max_size=5)))
def test_every_repeated_id_is_a_candidate(names: list[str]) -> None:
    """Every line that shares its id with another is among the suspects, the first of them too."""
    finder = DuplicateIdFinder()
    for number, name in enumerate(names, 1):
        finder.add(name, number)
    repeated = {number for number, name in enumerate(names, 1) if names.count(name) > 1}
    assert repeated <= set(candidates_of(finder))


def test_many_ids_go_through_a_file(tmp_path: Path) -> None:
    """Full buckets go to a file, from which nothing is lost, and which leaves no name behind."""
    finder = DuplicateIdFinder(tmp_path)
    count = BUCKET_COUNT * BUCKET_ITEMS
    for number in range(1, count + 1):
        finder.add(f"job-{number}", number)
    for number in (1, 500, count):
        finder.add(f"job-{number}", count + number)
    assert not list(tmp_path.iterdir())
    assert candidates_of(finder) == [1, 500, count, count + 1, count + 500, 2 * count]


def test_one_hash_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ids that share a hash are suspects together, and it is for others to tell them apart."""
    monkeypatch.setattr(duplicate_ids, "hash", lambda _: -(2**63), raising=False)
    finder = DuplicateIdFinder()
    finder.add("a", 1)
    finder.add("b", 2)
    assert candidates_of(finder) == [1, 2]


def test_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A temporary folder that cannot be used is an InputError with the way out."""
    monkeypatch.setattr(duplicate_ids, "hash", lambda _: 0, raising=False)
    finder = DuplicateIdFinder(tmp_path / "none")
    for number in range(BUCKET_ITEMS // 2 - 1):  # an id and a number are two items
        finder.add("x", number)
    with pytest.raises(InputError, match="TMPDIR"):
        finder.add("x", 0)
    finder.close()


def test_default_ids() -> None:
    """A line without an id is named by its number, in five digits or as many as it takes."""
    assert [default_id(number) for number in (1, 42, 99_999, 1_000_000)] == ["00001", "00042", "99999", "1000000"]
