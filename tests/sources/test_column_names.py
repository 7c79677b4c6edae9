"""Test that names on the command line mean what they say: columns in templates, quoted values in sweeps."""

from __future__ import annotations

from pathlib import Path

import pytest

from krea_batch.errors import JobError
from krea_batch.sources import InputOptions, JobFiles
from krea_batch.sources.sweep import parse_axis


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", "Caption,place\na red kite,Rome\n"),
        ("p.tsv", "Caption\tplace\na red kite\tRome\n"),
        ("p.jsonl", '{"Caption": "a red kite", "place": "Rome"}\n'),
        ("p.json", '[{"Caption": "a red kite", "place": "Rome"}]'),
    ],
)
@pytest.mark.parametrize("template", ["{Caption} in {place}", "{prompt} in {place}"])
def test_template_with_the_column_of_the_prompt(tmp_path: Path, name: str, content: str, template: str) -> None:
    """The column that became the prompt can be named as it is in the file, and as prompt."""
    (tmp_path / name).write_text(content)
    options = InputOptions(template=template, columns={"prompt": "Caption"})
    with JobFiles([str(tmp_path / name)], options=options) as files:
        assert files.check().problems == ()
        (job,) = files
    assert job.prompt == "a red kite in Rome"
    assert job.metadata["place"] == "Rome"
    assert ("Caption" in job.metadata) == ("{Caption}" in template)


def test_template_with_a_recognised_column(tmp_path: Path) -> None:
    """A column that was recognised without an option can be named, too."""
    (tmp_path / "p.csv").write_text("Caption,place\na red kite,Rome\n")
    with JobFiles([str(tmp_path / "p.csv")], options=InputOptions(template="{Caption} in {place}")) as files:
        files.check()
        assert [job.prompt for job in files] == ["a red kite in Rome"]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ('place="Rome, Italy",Bonn', ["Rome, Italy", "Bonn"]),
        ('place=Bonn, "Rome, Italy"', ["Bonn", "Rome, Italy"]),
        ('place="a ""big"" town"', ['a "big" town']),
        ('place=a 5" nail,b', ['a 5" nail', "b"]),
        ("place=Rome , Bonn", ["Rome", "Bonn"]),
    ],
)
def test_quoted_values(text: str, values: list[str]) -> None:
    """A list of values follows the rules of CSV."""
    assert [value for _, value in parse_axis(text).values] == values


@pytest.mark.parametrize("text", ['place="Rome', 'place="Rome" Italy,Bonn'])
def test_unfinished_quotes(text: str) -> None:
    """Quotes that do not end at a comma are an error that shows how to write them."""
    with pytest.raises(JobError) as caught:
        parse_axis(text)
    assert 'place="Rome, Italy",Bonn' in caught.value.hint


FILE_NAMES = ("kite_001.png", "door.v2.JPEG", "plain")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", "filename,prompt\nkite_001.png,a kite\ndoor.v2.JPEG,a door\nplain,an owl\n"),
        ("p.jsonl", "".join(f'{{"filename": "{name}", "prompt": "x"}}\n' for name in FILE_NAMES)),
    ],
)
def test_ids_that_are_names_of_images(tmp_path: Path, name: str, content: str) -> None:
    """If a column of file names is the id, images get these names, and not two extensions. A notice says so."""
    (tmp_path / name).write_text(content)
    with JobFiles([str(tmp_path / name)], options=InputOptions(columns={"id": "filename"})) as files:
        assert files.check().problems == ()
        assert [job.id for job in files] == ["kite_001", "door.v2", "plain"]
        assert sum("names of images" in notice for notice in files.notices()) == 1
