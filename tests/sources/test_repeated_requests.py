"""Test that jobs with the request of an earlier one are counted, and named if they are left out."""

from __future__ import annotations

import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from krea_batch.gateway.wire import fingerprint
from krea_batch.jobs import ImageStyleReference, Job
from krea_batch.sources import InputOptions, JobFiles
from krea_batch.sources.dedupe import hash_of_request
from krea_batch.sources.duplicates_file import DuplicateJob
from krea_batch.sources.hash_buckets import BUCKET_ITEMS, HashBuckets
from krea_batch.sources.sweep import make_axis

JOBS = st.builds(
    Job,
    prompt=st.sampled_from(["a cat", "a dog"]),
    seed=st.sampled_from([-2, -1, 0, 1, 2**61 - 1, 2**61]),
    aspect_ratio=st.sampled_from(["1:1", "16:9"]),
    image_style_references=st.sampled_from(
        [(), *((ImageStyleReference("https://x.org/a.png", strength),) for strength in (-2.0, -1.0, 1.0))]
    ),
    id=st.sampled_from(["", "a"]),
    metadata=st.sampled_from([{}, {"note": "x"}]),
)


@given(st.lists(JOBS))
def test_equal_hashes_are_equal_requests(jobs: list[Job]) -> None:
    """Two jobs have the same hash exactly if their requests are equal, whatever their ids and metadata are."""
    assert len({hash_of_request(job) for job in jobs}) == len({fingerprint(job) for job in jobs})


def test_count_in_bounded_memory(tmp_path: Path) -> None:
    """Hashes in full buckets are written to a temporary file and counted, too."""
    buckets = HashBuckets(tmp_path)
    hashes = [256 * n for n in range(3 * BUCKET_ITEMS)]
    buckets.add_all(hashes)
    buckets.add_all(hashes[:10])
    assert buckets.count_repeats() == 10
    buckets.close()


def count_repeated(tmp_path: Path, *lines: str, options: InputOptions | None = None) -> int:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(f"{line}\n" for line in lines))
    with JobFiles([str(path)], options=options) as files:
        return files.check().repeated


def test_repeated_rows_are_counted(tmp_path: Path) -> None:
    """Rows with another seed or field are not repeated; ids and metadata make no difference."""
    lines = ['{"prompt": "x"}', '{"prompt": "x", "id": "b", "metadata": {"n": 1}}', '{"prompt": "x", "seed": 1}']
    assert count_repeated(tmp_path, *lines) == 1
    assert count_repeated(tmp_path, *lines, *lines) == 4


def test_sweeps_are_not_repeated(tmp_path: Path) -> None:
    """The jobs of a sweep and the repeats of a row are meant; two rows with the same prompt have the same jobs."""
    assert count_repeated(tmp_path, '{"prompt": "x"}', options=InputOptions(axes=(make_axis("repeat", 3),))) == 0
    rows = ('{"prompt": "x"}', '{"prompt": "x"}')
    assert count_repeated(tmp_path, *rows, options=InputOptions(axes=(make_axis("seed", "1..4"),))) == 4


def test_jobs_left_out_are_named(tmp_path: Path) -> None:
    """With `dedupe`, each job that is left out is named with the job that it repeats and its line."""
    path = tmp_path / "p.csv"
    path.write_text("id,prompt\na,x\n,x\nb,y\nc,x\n,y\n")
    with JobFiles([str(path)], options=InputOptions(dedupe=True)) as files:
        checked = files.check()
        assert list(files.duplicates) == [
            DuplicateJob("00003", "a", f"{path}:3"),
            DuplicateJob("c", "a", f"{path}:5"),
            DuplicateJob("00006", "b", f"{path}:6"),
        ]
        files.check()
        assert len(list(files.duplicates)) == 3
    assert (checked.jobs, checked.duplicates, checked.repeated) == (2, 3, 0)


def test_a_default_id_that_another_row_has(tmp_path: Path) -> None:
    """A row whose id is the number of a row without an id is invalid, whichever comes first."""
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ({"prompt": "x"}, {"prompt": "y", "id": "00001"})))
    with JobFiles([str(path)]) as files:
        assert "both have the id" in files.check().problems[0].problem
    path.write_text("".join(json.dumps(row) + "\n" for row in ({"prompt": "x", "id": "00002"}, {"prompt": "y"})))
    with JobFiles([str(path)]) as files:
        assert files.check().bad_lines == 1
