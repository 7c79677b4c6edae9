"""Messages about the names of images, and about local reference images."""

from __future__ import annotations

from typing import Any

from krea_batch.testing import make_png
from tests.messages.message_case import Content, MessageCase, file, line, option

TABLE = "prompt,animal\na cat,cats\n"
PATH_HINT = (
    "write the path of the image below images/, such as cats/1: no .. or control characters, at most 200 bytes in a "
    "part and 800 in all"
)
FIELDS_HINT = "write fields in braces, {id}_{seed}, a slash for a folder, and {{ }} for braces"
MOVED = '{"prompt": "a cat", "image_style_references": [{"image_path": "%s"}]}'
URL = "https://example.com/a.png"
PNG = make_png()


def _name(message: str, args: str, new_args: str, content: str = TABLE) -> MessageCase:
    """Return the case of a template that the advice replaces by another."""
    return option(message, "a.csv", content, args, new_args)


def _cell(message: str, args: str, content: str, new_content: str) -> MessageCase:
    """Return the case of a template whose table the advice changes."""
    return file("a.csv", message, content, new_content, args)


def _image_name(problem: str, bad: str, good: str) -> MessageCase:
    return line(
        f'jobs.jsonl:1: "image_name" is {problem}',
        f'{{"prompt": "a cat", "image_name": {bad}}}',
        f'{{"prompt": "a cat", "image_name": {good}}}',
    )


def _references(message: str, bad: str, good: str, **changes: Any) -> MessageCase:
    """Return the case of a line whose reference images the advice changes, next to an image a.png."""
    content, new_content = (f'{{"prompt": "a cat", "image_style_references": {each}}}' for each in (bad, good))
    return MessageCase(
        message=f"jobs.jsonl:1: {message}",
        files={"jobs.jsonl": content, "a.png": PNG, "refs/b.png": PNG},
        args="jobs.jsonl",
        new_files={"jobs.jsonl": new_content},
        **changes,
    )


def _image(message: str, content: Content) -> MessageCase:
    """Return the case of a reference image that the advice replaces by another."""
    return MessageCase(
        message=message,
        files={"jobs.jsonl": MOVED % "a.png", "a.png": content},
        args="jobs.jsonl",
        new_files={"a.png": PNG},
    )


NAMES: tuple[MessageCase, ...] = (
    _name(
        f"--name: invalid name '{{id' (expected '}}' before end of string); {FIELDS_HINT}",
        "--name '{id'",
        "--name '{id}'",
    ),
    _name(f"--name: the name '{{}}' has braces without a field; {FIELDS_HINT}", "--name '{}'", "--name '{id}'"),
    _name(
        f"--name: the name '{{id!r}}' has braces with more than a field and its format; {FIELDS_HINT}",
        "--name '{id!r}'",
        "--name '{id}'",
    ),
    _name(
        "--name: the name '{id}:{animal}' has ':', which some file systems forbid; leave it out",
        "--name '{id}:{animal}'",
        "--name '{id}{animal}'",
    ),
    _name(
        "--name: the name '../{id}' has an empty part, or . or ..; write a path like {animal}/{id}",
        "--name '../{id}'",
        "--name '{animal}/{id}'",
    ),
    _name(
        f"--name: the name 'cat' has no field, so all images would have it; {FIELDS_HINT}",
        "--name cat",
        "--name '{id}_cat'",
    ),
    _name(
        'a.csv:2: no "place" for the name of the image; there are animal, id, prompt, aspect_ratio, creativity',
        "--name '{place}'",
        "--name '{animal}'",
    ),
    _name(
        'a.csv:2: no "seed" for the name of the image; give each job a seed, or leave out {seed}',
        "--name '{id}_{seed}'",
        "--name '{id}_{seed}' --set seed=7",
    ),
    _name(
        'a.csv:2: no "seed" for the name of the image; give each job a seed, or leave out {seed}',
        "--name '{id}_{seed}'",
        "--name '{id}'",
    ),
    _name(
        "a.csv:2: the name of the image would be '/00002'; a part of it is empty: leave out that field",
        "--name '{animal}/{id}'",
        "--name '{id}'",
        "prompt,animal\na cat,\n",
    ),
    line(
        "jobs.jsonl:1: \"animal\" of the image's name is ['cat']; use text or a number",
        '{"prompt": "a cat", "animal": ["cat"]}',
        '{"prompt": "a cat", "animal": "cat"}',
        "--name '{animal}'",
    ),
    _name(
        "a.csv:2: \"animal\" of the image's name cannot be formatted (Unknown format code 'd' for object of type "
        "'str'); change what follows the colon",
        "--name '{animal:03d}'",
        "--name '{animal:>3}'",
    ),
    _cell(
        f"a.csv:2: image_name '{'a' * 40}'… is longer than 200 bytes in a part or 800 in all; use fewer folders, or "
        "shorter values",
        "--name '{x}/{x}/{x}/{x}/{x}'",
        f"prompt,x\na cat,{'a' * 180}\n",
        f"prompt,x\na cat,{'a' * 150}\n",
    ),
    _name(
        "a.csv:2: image_name '<…>'… is longer than 200 bytes in a part or 800 in all; use fewer folders, or "
        "shorter values".replace("<…>", "a" * 40),
        "--name '{x}/{x}/{x}/{x}/{x}'",
        "--name '{x}/{x}/{x}'",
        f"prompt,x\na cat,{'a' * 180}\n",
    ),
    _cell(
        'a.csv:2: "image_name" is given in the row, and --name for all rows; keep one of them',
        "--name '{id}'",
        "prompt,image_name\na cat,cats/1\n",
        "prompt\na cat\n",
    ),
    _name(
        'a.csv:2: "image_name" is given in the row, and --name for all rows; keep one of them',
        "--name '{id}'",
        "",
        "prompt,image_name\na cat,cats/1\n",
    ),
    _image_name(f'"../cats/1"; {PATH_HINT}', '"../cats/1"', '"cats/1"'),
    _image_name(f'".png"; {PATH_HINT}', '".png"', '"cats/1.png"'),
    _image_name(f"7; {PATH_HINT}", "7", '"cats/7"'),
    _image_name('"cats\\1.png"; write "cats/1"', '"cats\\\\1.png"', '"cats/1"'),
    _image_name('"/cats/1"; write "cats/1"', '"/cats/1"', '"cats/1"'),
    _image_name('"a.png/1"; write "a_png/1"', '"a.png/1"', '"a_png/1"'),
)

REFERENCES: tuple[MessageCase, ...] = (
    MessageCase(
        message="lists/jobs.jsonl:1: there is no reference image 'lists/refs/b.png'; write image_path relative to "
        "the job file",
        files={"lists/jobs.jsonl": MOVED % "refs/b.png", "refs/b.png": PNG},
        args="lists/jobs.jsonl",
        new_files={"lists/jobs.jsonl": MOVED % "../refs/b.png"},
    ),
    _references(
        "cannot read the reference image 'refs' (not a regular file); check the path and its permissions",
        '[{"image_path": "refs"}]',
        '[{"image_path": "refs/b.png"}]',
    ),
    _image("jobs.jsonl:1: the reference image 'a.png' is empty; use a PNG, JPEG or WebP file", ""),
    _image("jobs.jsonl:1: the reference image 'a.png' is not an image; use a PNG, JPEG or WebP file", "log in"),
    _image(
        "jobs.jsonl:1: the reference image 'a.png' is of the type image/gif; use a PNG, JPEG or WebP file",
        b"GIF89a" + bytes(20),
    ),
    _references(
        '"image_url" in entry 1 of "image_style_references" is "a.png"; use a complete https:// URL, or image_path '
        "for a local file",
        '[{"image_url": "a.png"}]',
        '[{"image_path": "a.png"}]',
    ),
    _references(
        'entry 1 of "image_style_references" has both "image_url" and "image_path"; keep one of them',
        f'[{{"image_url": "{URL}", "image_path": "a.png"}}]',
        '[{"image_path": "a.png"}]',
    ),
    _references(
        'entry 1 of "image_style_references" has both "image_url" and "image_path"; keep one of them',
        f'[{{"image_url": "{URL}", "image_path": "a.png"}}]',
        f'[{{"image_url": "{URL}"}}]',
    ),
    _references(
        '"image_path" in entry 1 of "image_style_references" is 7; use the path of an image, relative to the job '
        "file",
        '[{"image_path": 7}]',
        '[{"image_path": "refs/b.png"}]',
    ),
    _references(
        'entry 1 of "image_style_references" is "a.png"; write {"image_url": "https://…", "strength": 1.0}, or '
        '{"image_path": "…"} for a local file',
        '["a.png"]',
        '[{"image_path": "a.png"}]',
    ),
    _references(
        'entry 1 of "image_style_references" has no "image_url"; write {"image_url": "https://…", "strength": 1.0}, '
        'or {"image_path": "…"} for a local file',
        '[{"strength": 0.5}]',
        '[{"image_path": "a.png", "strength": 0.5}]',
    ),
    _references(
        '"file" is not a field of entry 1 of "image_style_references"; the fields are image_url, '
        "strength, image_path",
        '[{"file": "a.png"}]',
        '[{"image_path": "a.png"}]',
    ),
)
