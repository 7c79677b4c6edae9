"""Messages about the JSON of lines and documents."""

from __future__ import annotations

from tests.messages.message_case import MessageCase, file, line, option

CAT = '{"prompt": "a cat"}'
DEEP = '{"prompt": "a cat", "metadata": {"a": ' + "[" * 101 + "]" * 101 + "}}"
VERY_DEEP = '[{"prompt": "a cat", "metadata": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}]"
LONG_LINE = '{"prompt": "a cat", "metadata": {"a": "' + "x" * (1 << 20) + '"}}'
LONG_NUMBER = "7" * 5000

CASES: tuple[MessageCase, ...] = (
    option(
        "a.jsonl:1: the line is the beginning of a list; read the file with --input-format json",
        "a.jsonl",
        '[\n{"prompt": "a cat"}\n]',
        "",
        "--input-format json",
    ),
    file(
        "a.json",
        'a.json: an object with the lists "images", "jobs", not a list of jobs; write the list with '
        "the prompts into a file of its own: jq '.[\"jobs\"]' a.json > jobs.json",
        '{"images": [{"id": 1}], "jobs": [{"prompt": "a cat"}], "info": {}}',
        '[{"prompt": "a cat"}]',
    ),
    file(
        "a.json",
        "a.json:3: text after the first value at character 1; put all into one list, [ and ] around "
        "them and a comma between them",
        '{"prompt": "a cat",\n"id": "x"}\n{"prompt": "a dog",\n"id": "y"}',
        '[{"prompt": "a cat",\n"id": "x"},\n{"prompt": "a dog",\n"id": "y"}]',
        prompts=("a cat", "a dog"),
    ),
    line(
        'jobs.jsonl:1: "prompt" contains a NUL character; remove it, or name the encoding with --encoding',
        '{"prompt": "a\\u0000 cat"}',
        '{"prompt": "a cat"}',
    ),
    line(
        'jobs.jsonl:1: the line is [{"prompt": "a cat"}], not an object; write one object per line, without [ and ]',
        f"[{CAT}]",
        CAT,
    ),
    line(
        'jobs.jsonl:1: the line is "a cat", not an object; write {"prompt": "what the image shows"}', '"a cat"', CAT
    ),
    line(
        'jobs.jsonl:1: duplicate key "seed"; keep one',
        '{"prompt": "a cat", "seed": 7, "seed": 8}',
        '{"prompt": "a cat", "seed": 7}',
    ),
    line(
        "jobs.jsonl:1: NaN is not valid JSON; use a finite number, or leave the field out",
        '{"prompt": "a cat", "seed": NaN}',
        CAT,
    ),
    line(
        "jobs.jsonl:1: the number 1e999 is too large; use a smaller number",
        '{"prompt": "a cat", "metadata": {"a": 1e999}}',
        '{"prompt": "a cat", "metadata": {"a": 1e99}}',
    ),
    line(
        "jobs.jsonl:1: the number 77777777777777777777… has 5000 digits; use a number of at most 64 bits",
        f'{{"prompt": "a cat", "seed": {LONG_NUMBER}}}',
        '{"prompt": "a cat", "seed": 777}',
    ),
    line(
        "jobs.jsonl:1: nested more than 100 levels deep; keep metadata flat",
        DEEP,
        '{"prompt": "a cat", "metadata": {"a": 1}}',
    ),
    line(
        "jobs.jsonl:1: the line is longer than 1 MiB; write one job per line, with less metadata",
        LONG_LINE,
        '{"prompt": "a cat", "metadata": {"a": "x"}}',
    ),
    line(
        'jobs.jsonl:1: "prompt" contains \\ud83d, a lone surrogate; write the character itself, or both surrogates',
        '{"prompt": "a \\ud83d cat"}',
        '{"prompt": "a \\ud83d\\ude00 cat"}',
        prompts=("a 😀 cat",),
    ),
    line(
        "jobs.jsonl:1: the line ends before the object is complete; write each job on one line",
        '{"prompt": "a cat",\n"seed": 7}',
        '{"prompt": "a cat", "seed": 7}',
    ),
    line("jobs.jsonl:1: trailing comma at character 19; remove it", '{"prompt": "a cat",}', CAT),
    line(
        "jobs.jsonl:1: unexpected comma after the object at character 20; remove it (separate jobs with newlines)",
        f"{CAT},\n{CAT}",
        f"{CAT}\n{CAT}",
        prompts=("a cat", "a cat"),
    ),
    line(
        "jobs.jsonl:1: unexpected text after the object at character 21; write one job per line",
        f"{CAT} {CAT}",
        f"{CAT}\n{CAT}",
        prompts=("a cat", "a cat"),
    ),
    line(
        "jobs.jsonl:1: unexpected quote ' at character 2; use the straight double quote \"",
        "{'prompt': 'a cat'}",
        CAT,
    ),
    line(
        "jobs.jsonl:1: unexpected text after the object at character 21; write one job per line",
        f"{CAT} // comment",
        CAT,
    ),
    line('jobs.jsonl:1: expected an object at character 1; write {"prompt": "what the image shows"}', "a cat", CAT),
    line(
        "jobs.jsonl:1: None is not valid JSON at character 39; write null",
        '{"prompt": "a cat", "metadata": {"a": None}}',
        '{"prompt": "a cat", "metadata": {"a": null}}',
    ),
    line('jobs.jsonl:1: "prompt" is not quoted at character 2; write "…"', '{prompt: "a cat"}', CAT),
    line(
        "jobs.jsonl:1: control character in a string at character 14; write \\t for a tab and \\n for a newline",
        '{"prompt": "a\tcat"}',
        '{"prompt": "a\\tcat"}',
        prompts=("a\tcat",),
    ),
    line(
        'jobs.jsonl:1: unterminated string at character 12; close it with " on the same line',
        '{"prompt": "a cat}',
        CAT,
    ),
    line(
        "jobs.jsonl:1: unknown \\ escape at character 15; write \\\\ for a backslash",
        '{"prompt": "a \\cat"}',
        '{"prompt": "a \\\\cat"}',
        prompts=("a \\cat",),
    ),
    line(
        "jobs.jsonl:1: missing comma at character 20; separate fields with commas",
        '{"prompt": "a cat" "seed": 7}',
        '{"prompt": "a cat", "seed": 7}',
    ),
    line('jobs.jsonl:1: missing colon at character 11; write "field": value', '{"prompt" "a cat"}', CAT),
    line('jobs.jsonl:1: missing field name at character 2; write "field": value', '{, "prompt": "a cat"}', CAT),
    line(
        'jobs.jsonl:1: missing value at character 12; write "field": value',
        '{"prompt": , "seed": 7}',
        '{"prompt": "a cat", "seed": 7}',
    ),
    line(
        'jobs.jsonl:1: byte 16 (0xfc) is not UTF-8; save the file as UTF-8 (in Excel "CSV UTF-8"), '
        "or read it with --encoding cp1252 if Excel or Windows wrote it",
        b'{"prompt": "a f\xfcr cat"}',
        '{"prompt": "a für cat"}',
        prompts=("a für cat",),
    ),
    option(
        'jobs.jsonl:1: byte 14 (0xfc) is not UTF-8; save the file as UTF-8 (in Excel "CSV UTF-8"), '
        "or read it with --encoding cp1252 if Excel or Windows wrote it",
        "jobs.jsonl",
        b'{"prompt": "f\xfcr"}',
        "",
        "--encoding cp1252",
        prompts=("für",),
    ),
    file("jobs.json", "jobs.json:2: trailing comma at character 20; remove it", f"[{CAT},\n{CAT},]", f"[{CAT}]"),
    file(
        "jobs.json",
        "jobs.json:1: unexpected quote ' at character 3; use the straight double quote \"",
        "[{'prompt': 'a cat'}]",
        f"[{CAT}]",
    ),
    file(
        "jobs.json",
        "jobs.json: the file ends before its JSON is complete; close each [ and {",
        f"[{CAT}",
        f"[{CAT}]",
    ),
    file(
        "jobs.json",
        "jobs.json:2: unexpected ] at character 19; close each [ and { before it",
        f"[{CAT},\n{CAT[:-1]}]",
        f"[{CAT},\n{CAT}]",
        prompts=("a cat", "a cat"),
    ),
    file(
        "jobs.json",
        "jobs.json: not JSON; set --input-format, e.g. to text for one prompt per line",
        "a cat\na dog\n",
        f"[{CAT}]",
    ),
    option(
        "jobs.json: not JSON; set --input-format, e.g. to text for one prompt per line",
        "jobs.json",
        "a cat\na dog\n",
        "",
        "--input-format text",
        prompts=("a cat", "a dog"),
    ),
    file(
        "jobs.json",
        'jobs.json:1: duplicate key "id"; keep one',
        f'[{CAT}, {{"prompt": "a dog", "id": "x", "id": "y"}}]',
        f"[{CAT}]",
    ),
    file("jobs.json", "jobs.json:1: nested more than 100 levels deep; keep metadata flat", VERY_DEEP, f"[{CAT}]"),
    file("jobs.json", "jobs.json:1: nested more than 100 levels deep; keep metadata flat", f"[{DEEP}]", f"[{CAT}]"),
    file(
        "jobs.json",
        'jobs.json: 7 is neither an array nor an object; write [{"prompt": "…"}, …], ["a prompt", '
        '…] or {"an id": "a prompt", …}',
        "7",
        f"[{CAT}]",
    ),
    file(
        "jobs.json",
        'jobs.json:1: 7 is neither an object nor a prompt; write [{"prompt": "…"}, …], ["a prompt", '
        '…] or {"an id": "a prompt", …}',
        "[7]",
        '["a cat"]',
    ),
    file(
        "jobs.json",
        'jobs.json: "prompt" and "seed" are both lists; write one object per job: [{"prompt": "…", "seed": 7}, …]',
        '{\n"prompt": ["a cat"], "seed": [7]}',
        '[{"prompt": "a cat", "seed": 7}]',
    ),
    file(
        "jobs.json",
        'jobs.json: "prompt" has the values of all rows; write one object per job: [{"prompt": "…", "seed": 7}, …]',
        '{\n"prompt": {"0": "a cat"}, "seed": {"0": 7}}',
        '[{"prompt": "a cat", "seed": 7}]',
    ),
    line(
        'jobs.jsonl:1: "prompt" is ["a cat", "a dog"]; write one job for each prompt: {"prompt": "…"}',
        '{"prompt": ["a cat", "a dog"]}',
        '{"prompt": "a cat"}\n{"prompt": "a dog"}',
        prompts=("a cat", "a dog"),
    ),
    file(
        "jobs.json",
        'jobs.json:1: byte 4 (0xfc) is not UTF-8; save the file as UTF-8 (in Excel "CSV UTF-8"), or '
        "read it with --encoding cp1252 if Excel or Windows wrote it",
        b'["f\xfcr"]',
        '["für"]',
        prompts=("für",),
    ),
    option(
        'jobs.json:1: byte 4 (0xfc) is not UTF-8; save the file as UTF-8 (in Excel "CSV UTF-8"), or '
        "read it with --encoding cp1252 if Excel or Windows wrote it",
        "jobs.json",
        b'["f\xfcr"]',
        "",
        "--encoding cp1252",
        prompts=("für",),
    ),
)
