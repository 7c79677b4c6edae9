"""`krea-batch schema` prints the schema of a job line, which agrees with `Job`."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from click.testing import CliRunner

from krea_batch.cli.commands.schema import schema
from krea_batch.jobs import ASPECT_RATIOS, CREATIVITIES, FIELDS, SEED_RANGE, Job


@pytest.fixture
def printed_schema() -> dict[str, Any]:
    """Return the schema that the command prints."""
    result = CliRunner().invoke(schema)
    assert result.exit_code == 0
    parsed: dict[str, Any] = json.loads(result.stdout)
    return parsed


def test_draft_and_shape(printed_schema: dict[str, Any]) -> None:
    """The schema is of draft 2020-12, has no $id, has the job at the top, and allows no other fields."""
    assert printed_schema["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    assert "$id" not in printed_schema
    assert printed_schema["type"] == "object"
    assert tuple(printed_schema["properties"]) == (*FIELDS, "sweep")
    assert printed_schema["required"] == ["prompt"]
    assert set(printed_schema["$defs"]) == {"ImageStyleReference", "Style", "Moodboard"}
    for part in (printed_schema, *printed_schema["$defs"].values()):
        assert part["additionalProperties"] is False
        assert part["title"]


def test_every_field_is_described(printed_schema: dict[str, Any]) -> None:
    """Every object, and every field of it, has a description."""
    for part in (printed_schema, *printed_schema["$defs"].values()):
        assert part["description"].endswith(".")
        for field in part["properties"].values():
            assert field["description"].endswith(".")


def test_defaults_and_ranges(printed_schema: dict[str, Any]) -> None:
    """Defaults and ranges are those of the API document; an id and a seed have no default."""
    fields = printed_schema["properties"]
    assert fields["aspect_ratio"]["enum"] == list(ASPECT_RATIOS)
    assert fields["creativity"]["enum"] == list(CREATIVITIES)
    assert (fields["seed"]["minimum"], fields["seed"]["maximum"]) == SEED_RANGE
    assert [fields[name]["maxItems"] for name in ("image_style_references", "styles", "moodboards")] == [10, 10, 1]
    assert {name: field["default"] for name, field in fields.items() if "default" in field} == {
        "aspect_ratio": "1:1",
        "creativity": "medium",
        "image_style_references": [],
        "styles": [],
        "moodboards": [],
        "metadata": {},
    }
    strengths = {name: part["properties"]["strength"]["default"] for name, part in printed_schema["$defs"].items()}
    assert strengths == {"ImageStyleReference": 1.0, "Style": 1.0, "Moodboard": 0.23}


@pytest.mark.parametrize(
    "job_id", ["a", "", "née", ".a", "a.b", "..", ".", "a/b", "a\\b", "a\nb", "a\x9b", "x" * 201]
)
def test_ids_agree_with_the_check(printed_schema: dict[str, Any], job_id: str) -> None:
    """The schema allows an id exactly if `Job` accepts it."""
    rules = printed_schema["properties"]["id"]
    allowed = re.search(rules["pattern"], job_id) is not None and len(job_id) <= rules["maxLength"]
    try:
        Job(prompt="x", id=job_id)
    except ValueError:
        assert not allowed
    else:
        assert allowed


def test_patterns(printed_schema: dict[str, Any]) -> None:
    """The pattern of prompts refuses blanks, that of image URLs http; that of moodboard ids accepts a UUID."""
    parts = printed_schema["$defs"]
    assert not re.search(printed_schema["properties"]["prompt"]["pattern"], " \n")
    assert not re.search(parts["ImageStyleReference"]["properties"]["image_url"]["pattern"], "http://a.b")
    assert parts["ImageStyleReference"]["oneOf"] == [{"required": ["image_url"]}, {"required": ["image_path"]}]
    assert re.search(parts["Moodboard"]["properties"]["id"]["pattern"], "01234567-89ab-cdef-0123-456789abcdef")
