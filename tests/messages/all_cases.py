"""All cases, by the heading under which the reference lists them."""

from __future__ import annotations

from tests.messages import field_cases, file_cases, image_cases, json_cases, option_cases, table_cases, text_cases
from tests.messages.message_case import MessageCase

CASES: dict[str, tuple[MessageCase, ...]] = {
    "Files": file_cases.CASES,
    "JSON and JSONL": json_cases.CASES,
    "Fields of a job": field_cases.CASES,
    "Names of images": image_cases.NAMES,
    "Local reference images": image_cases.REFERENCES,
    "Tables": table_cases.CASES,
    "Text files": text_cases.TEXTS,
    "YAML": text_cases.YAML,
    "Markdown": text_cases.MARKDOWN,
    "Prompt syntax of other tools": text_cases.SYNTAX,
    "Options": option_cases.CASES,
}
