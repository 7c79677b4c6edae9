"""`krea-batch schema`: nothing comes in; the JSON Schema of a job line goes out, for editors and generators.

Newcomers: types, ranges and defaults come from `jobs.Job`, so they cannot differ from what is checked. Only the
words, and the patterns of what `Job` checks in code, stand here.
"""

from __future__ import annotations

from typing import Any

import click

DRAFT = "https://json-schema.org/draft/2020-12/schema"

SWEEP_DESCRIPTION = (
    "Makes the job once with each combination of these values: a list, an object that names them, or for seeds a "
    "range like 1..4; repeat says how many of each."
)
STRENGTH_DESCRIPTION = "How much it counts. A negative strength pushes away from it."
DESCRIPTIONS = {
    "Job": {
        "": "One line of a job file: one image to be made. Only the prompt is needed.",
        "prompt": "What the image shows. The more it says, the better the image.",
        "aspect_ratio": "Width to height.",
        "creativity": (
            "How freely the prompt is read: raw (hardly interpreted), low (strictly), medium (balanced), "
            "high (drifting)."
        ),
        "seed": "The same seed with the same other fields makes the same image again. Left out: chance.",
        "image_style_references": "Images that guide the style, at most 10.",
        "styles": "Krea's LoRA styles, at most 10.",
        "moodboards": "Krea's moodboards, at most 1.",
        "id": (
            "The name of the job in results, and of its image's file. Each id stands once in a run. At most 200 "
            "bytes of UTF-8, without / \\ .. and control characters. Left out or empty: the number of the line, "
            "like 00001, counted on over all files."
        ),
        "metadata": "Anything of your own. It is kept with the result and never sent.",
    },
    "ImageStyleReference": {
        "": "An image that guides the style.",
        "image_url": "Where the image is: an HTTPS address that the gateway can reach.",
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

    click.echo(json.dumps(job_schema(), indent=2, ensure_ascii=False))


def job_schema() -> dict[str, Any]:
    """The schema as JSON would have it, the job itself at the top, what it is made of under `$defs`."""
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
    """Say what `Job` checks in code, and put the document's order back into what msgspec has sorted."""
    from krea_batch.jobs import ASPECT_RATIOS, CREATIVITIES, MAX_ID_BYTES, SEED_RANGE, UUID_PATTERN
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
    del job["id"]["default"]  # an empty id stands for the number of the line
    job["id"] |= {"pattern": r"^(?!\.$)(?!.*\.\.)[^/\\\u0000-\u001f\u007f-\u009f]*$", "maxLength": MAX_ID_BYTES}
    definitions["ImageStyleReference"]["properties"]["image_url"]["pattern"] = r"^https://\S+$"
    definitions["Moodboard"]["properties"]["id"]["pattern"] = f"^{UUID_PATTERN}$"
