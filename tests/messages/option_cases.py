"""Messages about options."""

from __future__ import annotations

from tests.messages.message_case import MessageCase, option


def _option(
    message: str, args: str, new_args: str, prompts: tuple[str, ...] = ("a cat",), content: str = "prompt\na cat\n"
) -> MessageCase:
    return option(message, "a.csv", content, args, new_args, prompts=prompts)


TWICE = ("a cat", "a cat")

CASES: tuple[MessageCase, ...] = (
    _option(
        "--seeds: the seeds 1..20000 are 20,000 in all; use at most 10,000, such as 1..4",
        "--seeds 1..20000",
        "--seeds 1..2",
        TWICE,
    ),
    _option(
        "--separator: is blank; give the text of the lines between prompts: --separator=---", "--separator ''", ""
    ),
    option(
        "--separator: is blank; give the text of the lines between prompts: --separator=---",
        "a.txt",
        "a cat\n---\na dog\n",
        "--separator ' '",
        "--separator=---",
        prompts=("a cat", "a dog"),
    ),
    _option("--wildcards: requires --prompt-syntax dynamic; add it, or leave out --wildcards", "--wildcards .", ""),
    option(
        "--lines: cannot be combined with --whole-file; keep one of them",
        "a.txt",
        "a cat\n",
        "--lines --whole-file",
        "--lines",
    ),
    option(
        "--lines: is for text files; leave out --input-format csv",
        "a.txt",
        "a cat\n",
        "--lines --input-format csv",
        "--lines",
    ),
    _option(
        "--column: invalid value 'sead=x'; use FIELD=COLUMN; the fields are prompt, aspect_ratio, "
        "creativity, seed, image_style_references, styles, moodboards, id, image_name, metadata",
        "--column sead=x",
        "--column seed=x",
        content="prompt,x\na cat,7\n",
    ),
    _option(
        "--column: prompt is given more than once; use one column for each field",
        "--column prompt=prompt --prompt-column prompt",
        "--prompt-column prompt",
    ),
    _option("--sample: cannot be combined with --limit; use one of them", "--limit 1 --sample 1", "--limit 1"),
    _option(
        "--sample-seed: requires --sample; add --sample N, or leave it out",
        "--sample-seed 3",
        "--sample 1 --sample-seed 3",
    ),
    _option("a.csv: --skip-comments is for text files; leave it out, or name a text file", "--skip-comments", ""),
    _option(
        "--set: seed is given more than once; use --sweep seed=… for several values",
        "--set seed=7 --set seed=8",
        "--sweep seed=7,8",
        TWICE,
    ),
    _option("--set: seed is both set and swept; keep one of them", "--set seed=7 --sweep seed=8", "--set seed=7"),
    _option(
        '--set: the value is "seed"; write a field and its value: aspect_ratio=16:9',
        "--set seed",
        "--set aspect_ratio=16:9",
    ),
    _option('--set: "sead" cannot be set for all rows; did you mean "seed"?', "--set sead=7", "--set seed=7"),
    _option(
        '--set: "id" cannot be set for all rows; the fields are aspect_ratio, creativity, seed, '
        "image_style_references, styles, moodboards",
        "--set id=7",
        "--set seed=7",
    ),
    _option(
        '--set: "seed" is "x"; use an integer of at most 64 bits, or leave it out', "--set seed=x", "--set seed=7"
    ),
    _option('--set: "aspect_ratio" is "16x9"; write "16:9"', "--set aspect_ratio=16x9", "--set aspect_ratio=16:9"),
    _option(
        '--set: "styles" is "ink" (expected an object at character 1); write JSON: [{"id": "…", "strength": 1.0}]',
        "--set styles=ink",
        '--set \'styles=[{"id": "ink"}]\'',
    ),
    _option(
        '--set: "id" in entry 1 of "styles" is 7; use the style\'s id from Krea\'s catalogue',
        "--set 'styles=[{\"id\": 7}]'",
        '--set \'styles=[{"id": "ink"}]\'',
    ),
    _option(
        'a.csv:2: "seed" is 7 in the row and 8 for all rows; keep one of them',
        "--set seed=8",
        "",
        content="prompt,seed\na cat,7\n",
    ),
    _option('--sweep: "sead" cannot be swept; did you mean "seed"?', "--sweep sead=7", "--sweep seed=7"),
    _option(
        '--sweep: "place" cannot be swept; the fields are aspect_ratio, creativity, seed, '
        "image_style_references, styles, moodboards",
        "--sweep place=Rome,Bonn",
        "--sweep creativity=raw,high",
        TWICE,
    ),
    _option(
        '--sweep: the sweep is "creativity"; write a field and its values: creativity=raw,high',
        "--sweep creativity",
        "--sweep creativity=raw,high",
        TWICE,
    ),
    _option(
        '--sweep: the sweep is "place="Rome" (unexpected end of data); write place="Rome, Italy",Bonn',
        "--sweep 'place=\"Rome' --prompt-template '{prompt} in {place}'",
        "--sweep 'place=\"Rome, Italy\",Bonn' --prompt-template '{prompt} in {place}'",
        ("a cat in Rome, Italy", "a cat in Bonn"),
    ),
    _option(
        '--sweep: "raw" occurs twice in the sweep of "creativity"; keep one of them',
        "--sweep creativity=raw,raw",
        "--sweep creativity=raw",
    ),
    _option(
        '"seed" is swept twice; give all its values in one sweep',
        "--sweep seed=7 --seeds 8",
        "--sweep seed=7,8",
        TWICE,
    ),
    _option(
        'a.csv:2: "creativity" is "max"; use one of raw, low, medium, high',
        "--sweep creativity=max",
        "--sweep creativity=high",
    ),
    _option(
        "--seeds: the seeds 4..1 end before they begin; write 1..4", "--seeds 4..1", "--seeds 1..4", ("a cat",) * 4
    ),
    _option('--seeds: the seeds are "1,x"; write 1..4, or 7,11,12', "--seeds 1,x", "--seeds 7,11,12", ("a cat",) * 3),
    _option(
        "the sweep makes 40,000 jobs from one row; use at most 10,000",
        "--seeds 1..10000 --sweep creativity=raw,low,medium,high",
        "--seeds 1..2",
        TWICE,
    ),
    _option("--repeat: repeat is 0; write a whole number from 1 to 10,000", "--repeat 0", "--repeat 1"),
    _option(
        "a.csv:2: repeat with a fixed seed makes the same image again; leave out the repeat, or "
        "leave out the seed to get different images",
        "--repeat 2 --seeds 1..4",
        "--seeds 1..4",
        ("a cat",) * 4,
    ),
    _option(
        "--prompt-template: invalid template \"{animal\" (expected '}' before end of string); write a "
        "column's name in braces, {animal}, and {{ }} for braces",
        "--prompt-template '{animal'",
        "--prompt-template '{animal}'",
        content="animal\na cat\n",
    ),
    _option(
        '--prompt-template: the template "{}" has a brace without a name; write a column\'s name in '
        "braces, {animal}, and {{ }} for braces",
        "--prompt-template '{}'",
        "--prompt-template '{animal}'",
        content="animal\na cat\n",
    ),
    _option(
        '--prompt-template: the template "a cat" names no column; write a column\'s name in braces, '
        "{animal}, and {{ }} for braces",
        "--prompt-template 'a cat'",
        "--prompt-template '{animal}'",
        content="animal\na cat\n",
    ),
    option(
        'jobs.jsonl:1: no "beast" for the template; the row has "animal"',
        "jobs.jsonl",
        '{"animal": "a cat"}',
        "--prompt-template '{beast}'",
        "--prompt-template '{animal}'",
    ),
    MessageCase(
        message='jobs.jsonl:1: "animal" is ["a cat"]; use text or a number',
        files={"jobs.jsonl": '{"animal": ["a cat"]}'},
        args="jobs.jsonl --prompt-template '{animal}'",
        new_files={"jobs.jsonl": '{"animal": "a cat"}'},
    ),
    MessageCase(
        message="JOBS cannot be combined with --prompt.",
        files={"a.txt": "a cat\n"},
        args="a.txt --prompt 'a cat'",
        new_args="--prompt 'a cat'",
    ),
    MessageCase(message="Missing argument 'JOBS…', or --prompt TEXT.", args="", new_args="--prompt 'a cat'"),
    MessageCase(
        message="There is no file 'a cat'. If it is a prompt, use --prompt 'a cat'.",
        args="'a cat'",
        new_args="--prompt 'a cat'",
    ),
    MessageCase(
        message="The prompt 'a.txt' is the name of a file. Leave out --prompt to read the file.",
        files={"a.txt": "a cat\n"},
        args="--prompt a.txt",
        new_args="a.txt",
    ),
)
