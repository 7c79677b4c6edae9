"""`krea-batch schema`: the JSON Schema of a job line, for editors and generators.

Types, ranges and defaults come from `jobs.Job`, so they cannot differ from what is checked. This module adds the
descriptions, and patterns for what `Job` checks in code.
"""

from __future__ import annotations

from typing import Any

import click

DRAFT = "https://json-schema.org/draft/2020-12/schema"

SWEEP_DESCRIPTION = (
    "Makes one job for each combination of these values: a list, an object that names them, or for seeds a range "
    "like 1..4; repeat is the number of jobs for each."
)
STRENGTH_DESCRIPTION = "Weight. A negative strength pushes away from it."
DESCRIPTIONS = {
    "Job": {
        "": "One line of a job file: one image to generate. Only the prompt is required.",
        "prompt": "What the image shows. More detail gives better images.",
        "aspect_ratio": "Width to height.",
        "creativity": (
            "How freely the prompt is interpreted: raw (hardly at all), low (strictly), medium (balanced), "
            "high (freely)."
        ),
        "seed": "The same seed with the same other fields gives the same image. Without a seed the image is random.",
        "image_style_references": "Images that guide the style, at most 10.",
        "styles": "Krea's LoRA styles, at most 10.",
        "moodboards": "Krea's moodboards, at most 1.",
        "id": (
            "The name of the job in the results, and of its image file. Each id is unique in a run. At most 200 "
            "bytes of UTF-8, without / \\ .. and control characters. Default: the line number, like 00001, "
            "counted over all files."
        ),
        "image_name": (
            "Names the image file instead of the id. It may have folders: cats/1. An extension is not used, since "
            "the image has its own. At most 200 bytes of UTF-8 in a part, without \\ .. and control characters."
        ),
        "metadata": "Your own data. It is kept with the result and never sent.",
    },
    "ImageStyleReference": {
        "": "An image that guides the style.",
        "image_url": "HTTPS URL of the image, which the gateway must be able to reach.",
        "image_path": (
            "Path of a local PNG, JPEG or WebP, relative to the job file. `--references` says where it is uploaded."
        ),
        "strength": STRENGTH_DESCRIPTION,
    },
    "Style": {
        "": "One of Krea's LoRA styles.",
        "id": "The style's id in Krea's catalogue.",
        "strength": STRENGTH_DESCRIPTION,
    },
    "Moodboard": {
        "": "One of Krea's moodboards.",
        "id": "The moodboard's UUID in Krea's catalogue.",
        "strength": STRENGTH_DESCRIPTION,
    },
}


@click.command()
def schema() -> None:
    """Print the JSON Schema (draft 2020-12) of a job line."""
    import json

    from krea_batch.cli.ui.formatting import show_json

    show_json(json.dumps(job_schema(), indent=2, ensure_ascii=False))


def job_schema() -> dict[str, Any]:
    """Return the schema, with the job at the top and its parts in `$defs`."""
    import msgspec

    from krea_batch.jobs import Job

    full_schema: dict[str, Any] = msgspec.to_builtins(msgspec.json.schema(Job))
    definitions = full_schema["$defs"]
    for name, definition in definitions.items():
        _add_descriptions(definition, DESCRIPTIONS[name])
    _add_constraints(definitions)
    job: dict[str, Any] = definitions.pop("Job")
    return {"$schema": DRAFT} | job | {"title": "A krea-batch job line", "$defs": definitions}


def _add_descriptions(definition: dict[str, Any], descriptions: dict[str, str]) -> None:
    definition["description"] = descriptions[""]
    for field, rules in definition["properties"].items():
        definition["properties"][field] = {"description": descriptions[field]} | rules


def _add_constraints(definitions: dict[str, Any]) -> None:
    """Add what `Job` checks in code, and restore the API document's order, which msgspec sorts."""
    from krea_batch.jobs import (
        ASPECT_RATIOS,
        CREATIVITIES,
        MAX_ID_BYTES,
        MAX_IMAGE_NAME_BYTES,
        SEED_RANGE,
        UUID_PATTERN,
    )
    from krea_batch.sources.sweep import MAX_JOBS_PER_ROW, REPEAT, SWEEPABLE

    job = definitions["Job"]["properties"]
    job["sweep"] = {
        "description": SWEEP_DESCRIPTION,
        "type": "object",
        "propertyNames": {"enum": [*SWEEPABLE, REPEAT]},
        "additionalProperties": {
            "anyOf": [
                {"type": "array", "minItems": 1},
                {"type": "object", "minProperties": 1},
                {"type": "string", "pattern": r"^-?\d"},
                {"type": "integer", "minimum": 1, "maximum": MAX_JOBS_PER_ROW},
            ]
        },
    }
    job["prompt"]["pattern"] = r"\S"
    job["aspect_ratio"]["enum"] = list(ASPECT_RATIOS)
    job["creativity"]["enum"] = list(CREATIVITIES)
    job["seed"] |= {"minimum": SEED_RANGE[0], "maximum": SEED_RANGE[1]}
    del job["id"]["default"]  # an empty id means the line number
    job["id"] |= {"pattern": r"^(?!\.$)(?!.*\.\.)[^/\\\u0000-\u001f\u007f-\u009f]*$", "maxLength": MAX_ID_BYTES}
    del job["image_name"]["default"]  # an empty name means the id
    job["image_name"] |= {
        "pattern": r"^(?!/)(?!.*(?:^|/)\.{0,2}(?:/|$))[^\\\u0000-\u001f\u007f-\u009f]*$|^$",
        "maxLength": MAX_IMAGE_NAME_BYTES,
    }
    reference = definitions["ImageStyleReference"]
    for name, pattern in (("image_url", r"^https://\S+$"), ("image_path", r"\S")):
        del reference["properties"][name]["default"]  # an empty text means that it is not given
        reference["properties"][name]["pattern"] = pattern
    reference["required"] = []
    reference["oneOf"] = [{"required": ["image_url"]}, {"required": ["image_path"]}]
    definitions["Moodboard"]["properties"]["id"]["pattern"] = f"^{UUID_PATTERN}$"
