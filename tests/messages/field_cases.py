"""Messages about the fields of jobs, sweeps in rows, keys that options name, and the ids of jobs."""

from __future__ import annotations

from tests.messages.message_case import MessageCase, line, option

CAT = '{"prompt": "a cat"}'
UUID = "01234567-89ab-cdef-0123-456789abcdef"


def _field(message: str, bad: str, good: str) -> MessageCase:
    """Return the case of one more field in the line of a job."""
    return line(message, f'{{"prompt": "a cat", {bad}}}', f'{{"prompt": "a cat", {good}}}')


def _reference(bad: str, good: str, message: str) -> MessageCase:
    return _field(message, f'"image_style_references": {bad}', f'"image_style_references": {good}')


URL = '[{"image_url": "https://example.com/a.png"}]'

CASES: tuple[MessageCase, ...] = (
    line(
        'jobs.jsonl:1: "a b" and "a/b" in the sweep of "place" would be a_b in an id; '
        'name them: {"first": …, "second": …}',
        '{"prompt": "x", "sweep": {"place": ["a b", "a/b"]}}',
        '{"prompt": "x", "sweep": {"place": {"first": "a b", "second": "a/b"}}}',
        "--prompt-template '{place}'",
        prompts=("a b", "a/b"),
    ),
    _field('jobs.jsonl:1: "sead" is not a field of a job; did you mean "seed"?', '"sead": 7', '"seed": 7'),
    _field(
        'jobs.jsonl:1: "category" is not a field of a job; the fields are prompt, aspect_ratio, '
        "creativity, seed, image_style_references, styles, moodboards, id, image_name, metadata; --keep-extra "
        "puts others into metadata",
        '"category": "x"',
        '"metadata": {"category": "x"}',
    ),
    option(
        'jobs.jsonl:1: "category" is not a field of a job; the fields are prompt, aspect_ratio, '
        "creativity, seed, image_style_references, styles, moodboards, id, image_name, metadata; --keep-extra "
        "puts others into metadata",
        "jobs.jsonl",
        '{"prompt": "a cat", "category": "x"}',
        "",
        "--keep-extra",
    ),
    line(
        'jobs.jsonl:1: "n" is given twice, on the line and in metadata; keep one',
        '{"prompt": "a cat", "n": 1, "metadata": {"n": 2}}',
        '{"prompt": "a cat", "n": 1}',
        "--keep-extra",
    ),
    option(
        'jobs.jsonl:1: the line is an object around the list "prompts", not a job; read it with --input-format json',
        "jobs.jsonl",
        '{"prompts": ["a cat"]}',
        "",
        "--input-format json",
    ),
    option(
        'jobs.jsonl:1: missing "prompt", but the job has "body.prompt"; choose it with '
        "--prompt-column body.prompt --id-column custom_id --keep-extra",
        "jobs.jsonl",
        '{"custom_id": "x", "body": {"prompt": "a cat"}}',
        "",
        "--prompt-column body.prompt --id-column custom_id --keep-extra",
    ),
    line(
        'jobs.jsonl:1: missing "prompt"; write {"prompt": "what the image shows"}',
        '{"seed": 7}',
        '{"prompt": "a cat", "seed": 7}',
    ),
    line('jobs.jsonl:1: "text" is not a field of a job; did you mean "prompt"?', '{"text": "a cat"}', CAT),
    line('jobs.jsonl:1: "prompt" is empty; write in quotes what the image shows', '{"prompt": ""}', CAT),
    line('jobs.jsonl:1: "prompt" is null; write in quotes what the image shows', '{"prompt": null}', CAT),
    line(
        'jobs.jsonl:1: "prompt" is 7; write in quotes what the image shows',
        '{"prompt": 7}',
        '{"prompt": "7"}',
        prompts=("7",),
    ),
    _field(
        'jobs.jsonl:1: "id" is 202 bytes long; use at most 200, which fit into a file name',
        '"id": "' + "ü" * 101 + '"',
        '"id": "' + "ü" * 100 + '"',
    ),
    _field(
        'jobs.jsonl:1: "id" is "a/b"; an id is used as a file name: no / \\ .. or control '
        "characters, at most 200 bytes",
        '"id": "a/b"',
        '"id": "a_b"',
    ),
    _field('jobs.jsonl:1: "id" is true; write it in quotes', '"id": true', '"id": "true"'),
    _field(
        'jobs.jsonl:1: "aspect_ratio" is "16x9"; write "16:9"', '"aspect_ratio": "16x9"', '"aspect_ratio": "16:9"'
    ),
    _field(
        'jobs.jsonl:1: "aspect_ratio" is "5:1"; use one of 1:1, 4:3, 3:2, 16:9, 2.35:1, 4:5, 2:3, 9:16',
        '"aspect_ratio": "5:1"',
        '"aspect_ratio": "2.35:1"',
    ),
    _field('jobs.jsonl:1: "creativity" is "High"; write "high"', '"creativity": "High"', '"creativity": "high"'),
    _field(
        'jobs.jsonl:1: "creativity" is "max"; use one of raw, low, medium, high',
        '"creativity": "max"',
        '"creativity": "high"',
    ),
    _field(
        'jobs.jsonl:1: "seed" is "seven"; use an integer of at most 64 bits, or leave it out',
        '"seed": "seven"',
        '"seed": 7',
    ),
    _field(
        'jobs.jsonl:1: "seed" is 7.5; use an integer of at most 64 bits, or leave it out', '"seed": 7.5', '"seed": 7'
    ),
    _field(
        'jobs.jsonl:1: "seed" is 99999999999999999999; use an integer of at most 64 bits, or leave it out',
        '"seed": 99999999999999999999',
        '"seed": 9999999999999999999',
    ),
    _field(
        'jobs.jsonl:1: "metadata" is "x"; write an object: {"key": "value"}',
        '"metadata": "x"',
        '"metadata": {"key": "value"}',
    ),
    _reference(
        "7",
        URL,
        'jobs.jsonl:1: "image_style_references" is 7; write a list: '
        '"image_style_references": [{"image_url": "https://…", "strength": 1.0}]',
    ),
    _reference(
        "[" + ",".join([URL[1:-1]] * 11) + "]",
        "[" + ",".join([URL[1:-1]] * 10) + "]",
        'jobs.jsonl:1: "image_style_references" has 11 entries; use at most 10',
    ),
    _reference(
        '["https://example.com/a.png"]',
        URL,
        'jobs.jsonl:1: entry 1 of "image_style_references" is "https://example.com/a.png"; write '
        '{"image_url": "https://…", "strength": 1.0}, or {"image_path": "…"} for a local file',
    ),
    _reference(
        '[{"url": "https://example.com/a.png"}]',
        URL,
        'jobs.jsonl:1: "url" is not a field of entry 1 of "image_style_references"; the fields are '
        "image_url, strength, image_path",
    ),
    _reference(
        '[{"strength": 1.0}]',
        URL,
        'jobs.jsonl:1: entry 1 of "image_style_references" has no "image_url"; write {"image_url": '
        '"https://…", "strength": 1.0}, or {"image_path": "…"} for a local file',
    ),
    _reference(
        '[{"image_url": "a.png"}]',
        URL,
        'jobs.jsonl:1: "image_url" in entry 1 of "image_style_references" is "a.png"; use a complete https:// '
        "URL, or image_path for a local file",
    ),
    _reference(
        '[{"image_url": "https://example.com/a.png", "strength": "1"}]',
        URL,
        'jobs.jsonl:1: "strength" in entry 1 of "image_style_references" is "1"; use a number like 0.5 or -1',
    ),
    _reference(
        '[{"image_url": "https://example.com/a.png", "weight": 1}]',
        URL,
        'jobs.jsonl:1: "weight" is not a field of entry 1 of "image_style_references"; the fields '
        "are image_url, strength, image_path",
    ),
    _field(
        'jobs.jsonl:1: "id" in entry 1 of "styles" is ""; use the style\'s id from Krea\'s catalogue',
        '"styles": [{"id": ""}]',
        '"styles": [{"id": "ink-wash"}]',
    ),
    _field(
        'jobs.jsonl:1: "id" in entry 1 of "moodboards" is "ink"; use the moodboard\'s UUID, like '
        "01234567-89ab-cdef-0123-456789abcdef",
        '"moodboards": [{"id": "ink"}]',
        f'"moodboards": [{{"id": "{UUID}"}}]',
    ),
    _field(
        'jobs.jsonl:1: "moodboards" is "[ink" ("ink" is not quoted at character 2); write JSON: '
        '[{"id": "a UUID", "strength": 0.23}]',
        '"moodboards": "[ink"',
        f'"moodboards": [{{"id": "{UUID}"}}]',
    ),
    _field(
        'jobs.jsonl:1: "sweep" is "seed"; write "sweep": {"creativity": ["raw", "high"]}',
        '"sweep": "seed"',
        '"sweep": {"creativity": ["raw"]}',
    ),
    _field(
        'jobs.jsonl:1: the sweep of "seed" is 7; write "sweep": {"creativity": ["raw", "high"], "seed": [1, 2, 3]}',
        '"sweep": {"seed": 7}',
        '"sweep": {"seed": [7]}',
    ),
    _field(
        'jobs.jsonl:1: the sweep of "seed" has no values; give at least one, or remove it',
        '"sweep": {"seed": []}',
        '"sweep": {"seed": [7]}',
    ),
    _field(
        'jobs.jsonl:1: 7 occurs twice in the sweep of "seed"; keep one of them',
        '"sweep": {"seed": [7, 7]}',
        '"sweep": {"seed": [7]}',
    ),
    _field(
        'jobs.jsonl:1: a value in the sweep of "styles" is [{"id": "ink"}]; name its values: '
        '"styles": {"first": …, "second": …}',
        '"sweep": {"styles": [[{"id": "ink"}]]}',
        '"sweep": {"styles": {"first": [{"id": "ink"}]}}',
    ),
    _field(
        'jobs.jsonl:1: "" in the sweep of "creativity" cannot be written in an id; give it a name',
        '"sweep": {"creativity": [""]}',
        '"sweep": {"creativity": ["raw"]}',
    ),
    _field(
        'jobs.jsonl:1: "sead" cannot be swept; did you mean "seed"?',
        '"sweep": {"sead": [7]}',
        '"sweep": {"seed": [7]}',
    ),
    _field(
        'jobs.jsonl:1: "place" cannot be swept; the fields are aspect_ratio, creativity, seed, '
        "image_style_references, styles, moodboards",
        '"sweep": {"place": ["Rome"]}',
        '"sweep": {"creativity": ["raw"]}',
    ),
    _field(
        "jobs.jsonl:1: repeat is 0; write a whole number from 1 to 10,000",
        '"sweep": {"repeat": 0}',
        '"sweep": {"repeat": 1}',
    ),
    _field(
        "jobs.jsonl:1: the seeds 4..1 end before they begin; write 1..4",
        '"sweep": {"seed": "4..1"}',
        '"sweep": {"seed": "4..4"}',
    ),
    _field(
        'jobs.jsonl:1: the seeds are "x"; write 1..4, or 7,11,12', '"sweep": {"seed": "x"}', '"sweep": {"seed": "7"}'
    ),
    _field(
        'jobs.jsonl:1: "seed" is both given and swept; keep one of them',
        '"seed": 7, "sweep": {"seed": [8]}',
        '"sweep": {"seed": [8]}',
    ),
    _field(
        "jobs.jsonl:1: repeat with a fixed seed makes the same image again; leave out the repeat, "
        "or leave out the seed to get different images",
        '"seed": 7, "sweep": {"repeat": 2}',
        '"sweep": {"seed": "1..1"}',
    ),
    _field(
        "jobs.jsonl:1: repeat with a fixed seed makes the same image again; leave out the repeat, "
        "or leave out the seed to get different images",
        '"sweep": {"seed": "1..5000", "repeat": 5000}',
        '"sweep": {"seed": [7]}',
    ),
    line(
        'jobs.jsonl:2: jobs.jsonl:1 and jobs.jsonl:2 both have the id "x"; give one of them another id',
        '{"id": "x", "prompt": "a cat"}\n{"id": "x", "prompt": "a dog"}',
        '{"id": "x", "prompt": "a cat"}\n{"id": "y", "prompt": "a dog"}',
        prompts=("a cat", "a dog"),
    ),
    line(
        'jobs.jsonl:2: jobs.jsonl:1 and jobs.jsonl:2 both have the id "00002"; a line without an id '
        "gets its number as id; give the other line another id",
        '{"id": "00002", "prompt": "a cat"}\n{"prompt": "a dog"}',
        '{"id": "x", "prompt": "a cat"}\n{"prompt": "a dog"}',
        prompts=("a cat", "a dog"),
    ),
    option(
        'jobs.jsonl: no row has the key "wishes"; did you mean "wish"?',
        "jobs.jsonl",
        '{"wish": "a cat"}',
        "--prompt-column wishes",
        "--prompt-column wish",
    ),
    option(
        'jobs.jsonl: no row has the key "start"; the keys are "prompt", "nr"',
        "jobs.jsonl",
        '{"prompt": "a cat", "nr": 7}',
        "--column seed=start",
        "--column seed=nr",
    ),
    line(
        'jobs.jsonl:2: no "wish", which is the prompt; add it, or choose another --prompt-column',
        '{"wish": "a cat"}\n{"nr": 7}',
        '{"wish": "a cat"}',
        "--prompt-column wish",
    ),
    option(
        'jobs.jsonl: "nr" is assigned to both id and seed; choose two different keys',
        "jobs.jsonl",
        '{"prompt": "a cat", "nr": "7"}',
        "--column seed=nr --id-column nr",
        "--column seed=nr",
    ),
    line(
        'jobs.jsonl:1: "id" is given, but id comes from "nr"; remove "id", or add --keep-extra, '
        "which puts it into the metadata",
        '{"prompt": "a cat", "id": "x", "nr": "7"}',
        '{"prompt": "a cat", "nr": "7"}',
        "--id-column nr",
    ),
    option(
        'jobs.jsonl:1: "id" is given, but id comes from "nr"; remove "id", or add --keep-extra, '
        "which puts it into the metadata",
        "jobs.jsonl",
        '{"prompt": "a cat", "id": "x", "nr": "7"}',
        "--id-column nr",
        "--id-column nr --keep-extra",
    ),
    line(
        'jobs.jsonl:1: "prompt" is given twice, on the line and in metadata; keep one',
        '{"wish": "a cat", "prompt": "x", "metadata": {"prompt": "y"}}',
        '{"wish": "a cat", "prompt": "x"}',
        "--prompt-column wish --keep-extra",
    ),
    option(
        'jobs.json:1: the entry has both the key "x" and the id "y"; choose the id with --id-column '
        'id, or the key with --id-column ""',
        "jobs.json",
        '{"x": {"prompt": "a cat", "id": "y"}}',
        "",
        "--id-column id",
    ),
    option(
        'jobs.json:1: the entry has both the key "x" and the id "y"; choose the id with --id-column '
        'id, or the key with --id-column ""',
        "jobs.json",
        '{"x": {"prompt": "a cat", "id": "y"}}',
        "",
        '--id-column ""',
    ),
    MessageCase(
        message='jobs.jsonl:1: "Sead" was put into the metadata; did you mean "seed"?',
        files={"jobs.jsonl": '{"prompt": "a cat", "Sead": 7}'},
        args="jobs.jsonl --keep-extra",
        new_files={"jobs.jsonl": '{"prompt": "a cat", "seed": 7}'},
        is_notice=True,
    ),
)
