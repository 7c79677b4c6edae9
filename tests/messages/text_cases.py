"""Messages about texts, YAML, Markdown, encodings, and the prompt syntax of other tools."""

from __future__ import annotations

from tests.messages.message_case import MessageCase, file, option

LONG = "x" * ((1 << 20) + 10)
LIST = "a cat\na dog\n"
BOTH = ("a cat", "a dog")
BLOCKS = "a cat\non a roof\n---\na dog\n"

TEXTS: tuple[MessageCase, ...] = (
    option(
        "a.txt: the text begins like JSON; set --input-format json to read it as such, or text if these are prompts",
        "a.txt",
        '["a cat", "a dog"]',
        "",
        "--input-format json",
        prompts=BOTH,
    ),
    option(
        "a.txt: the text begins like JSON; set --input-format json to read it as such, or text if these are prompts",
        "a.txt",
        '["a cat", "a dog"]',
        "",
        "--input-format text",
        prompts=('["a cat", "a dog"]',),
    ),
    file(
        "a.txt",
        "a.txt: the text begins like a list in a program; leave out its quotes, commas and brackets, or set "
        "--input-format text to send them",
        '"a cat",\n"a dog"\n',
        LIST,
        prompts=BOTH,
    ),
    file(
        "a.txt",
        "a.txt: the text begins like a list in a program; leave out its quotes, commas and brackets, or set "
        "--input-format text to send them",
        "prompts = [\n    'a cat',\n    'a dog',\n]\n",
        LIST,
        prompts=BOTH,
    ),
    file(
        "a.txt",
        "a.txt: the first line begins with the name of a field; write only the prompts, or JSONL, or set "
        "--input-format text to send the lines",
        "prompt: a cat\nseed: 7\n",
        '{"prompt": "a cat", "seed": 7}\n',
    ),
    option(
        "a.txt: lines begin with #, which are sent as prompts; --skip-comments leaves them out",
        "a.txt",
        "# animals\na cat\na dog\n",
        "",
        "--skip-comments",
        prompts=BOTH,
        is_notice=True,
    ),
    option(
        "a.txt: the lines begin with numbers or bullets, which are sent; --input-format markdown leaves them out",
        "a.txt",
        "1. a cat\n2. a dog\n3. an owl\n",
        "",
        "--input-format markdown",
        prompts=(*BOTH, "an owl"),
        is_notice=True,
    ),
    file("a.txt", 'a.txt:1: "prompt" is empty; write in quotes what the image shows', "\u200b\na cat\n", "a cat\n"),
    file("a.txt", "a.txt:1: the line is longer than 1 MiB; shorten the prompt", LONG, "a cat"),
    option(
        "a.txt:1: the file is longer than 1 MiB; shorten the prompt, or read each line as one: --lines",
        "a.txt",
        "a cat\n" * 200_000,
        "--whole-file",
        "--lines --dedupe",
    ),
    file(
        "a.txt",
        "a.txt:1: the block is longer than 1 MiB; shorten the prompt",
        f"{LONG}\n---\na dog",
        "a cat\n---\na dog",
        "--separator=---",
        prompts=BOTH,
    ),
    file(
        "a.txt",
        "a.txt:2: a carriage return (CR) in the line: line ends are mixed; convert them: tr '\\r' '\\n' < OLD > NEW",
        "a cat\na dog\ran owl\n",
        "a cat\na dog\nan owl\n",
        prompts=(*BOTH, "an owl"),
    ),
    file(
        "a.txt",
        "a.txt: some lines end with CR and some with LF; convert them: tr '\\r' '\\n' < OLD > NEW",
        "a cat\ra dog\r\nan owl",
        "a cat\na dog\nan owl",
        prompts=(*BOTH, "an owl"),
    ),
    option(
        "a.txt: the first line looks like the header of a table; set --input-format csv to read it "
        "as one, or text if it is a prompt",
        "a.txt",
        "prompt\tseed\na cat\t7\n",
        "",
        "--input-format csv",
    ),
    option(
        "a.txt: the first line looks like the header of a table; set --input-format csv to read it "
        "as one, or text if it is a prompt",
        "a.txt",
        "prompts\na cat\n",
        "",
        "--input-format text",
        prompts=("prompts", "a cat"),
    ),
    option(
        'a.txt: there is no column "nr", because it is a text file; leave out the option that '
        "names it, or set --input-format",
        "a.txt",
        "a cat\n",
        "--id-column nr",
        "",
    ),
    option(
        'a.txt: there is no column "wish", because it is a text file; leave out the option '
        "that names it, or set --input-format",
        "a.txt",
        "id;wish\nx;a cat\n",
        "--prompt-column wish",
        "--prompt-column wish --input-format csv",
    ),
    option(
        "jobs.jsonl: --lines, --whole-file and --separator are for text files; leave them out, or name a text file",
        "jobs.jsonl",
        '{"prompt": "a cat"}',
        "--lines",
        "",
    ),
    option(
        "a.txt:3: nothing was submitted, since 1 of 4 rows has a line that seems to separate "
        "prompts of several lines; --separator='---' reads the lines between as one prompt, --lines "
        "reads each line as one",
        "a.txt",
        BLOCKS,
        "",
        "--separator='---'",
        prompts=("a cat\non a roof", "a dog"),
        only_run=True,
    ),
    option(
        "a.txt:2: 1 of 3 rows has a line that seems to separate prompts of several lines, which "
        "would be sent as text: ---; --separator='---' reads the lines between as one prompt, "
        "--lines reads each line as one",
        "a.txt",
        "a cat\n---\na dog\n",
        "",
        "--lines",
        prompts=("a cat", "---", "a dog"),
        is_notice=True,
    ),
    MessageCase(
        message="d: text files with several lines: 1 of 2, the first a.txt (2 lines), and each may be one "
        "prompt or a list; --lines makes 3 prompts, one of each line, --whole-file makes 2, one of "
        "each file",
        files={"d/a.txt": "a cat\non a roof\n", "d/b.txt": "a dog"},
        args="d",
        new_args="d --whole-file",
        prompts=("a cat\non a roof", "a dog"),
    ),
    MessageCase(
        message="d: text files with several lines: 1 of 1, the first a.txt (2 lines), and each may be one "
        "prompt or a list; --lines makes 2 prompts, one of each line, --whole-file makes 1, one of "
        "each file",
        files={"d/a.txt": LIST},
        args="d",
        new_args="d --lines",
        prompts=BOTH,
    ),
    MessageCase(
        message="d: text files with several lines: 1 of 1, the first a.txt (4 lines), and each may be one "
        "prompt or a list; --lines makes 4 prompts, one of each line, --whole-file makes 1, one of "
        "each file, --separator='---' reads the lines between as one prompt",
        files={"d/a.txt": BLOCKS},
        args="d",
        new_args="d --separator='---'",
        prompts=("a cat\non a roof", "a dog"),
    ),
    option(
        "a.txt: seems to be encoded as UTF-16 without a byte order mark; read it with --encoding "
        "utf-16-le, or save it as UTF-8",
        "a.txt",
        "a cat\n".encode("utf-16-le"),
        "",
        "--encoding utf-16-le",
    ),
    option(
        "a.txt: seems to be encoded as UTF-16 without a byte order mark; read it with --encoding "
        "utf-16-be, or save it as UTF-8",
        "a.txt",
        "a cat\n".encode("utf-16-be"),
        "",
        "--encoding utf-16-be",
    ),
    option(
        'a.txt:1: byte 2 (0xfc) is not UTF-8; save the file as UTF-8 (in Excel "CSV UTF-8"), or '
        "read it with --encoding cp1252 if Excel or Windows wrote it",
        "a.txt",
        b"f\xfcr\n",
        "",
        "--encoding cp1252",
        prompts=("für",),
    ),
    option(
        "a.txt:1: byte 0xc3 is not ascii (ordinal not in range(128)); name the encoding of the file "
        "with --encoding, or save it as UTF-8",
        "a.txt",
        "für\n".encode(),
        "--encoding ascii",
        "",
        prompts=("für",),
    ),
    option(
        "a.txt: is valid UTF-8, too; leave out --encoding cp1252 if the letters above are wrong",
        "a.txt",
        "für\n".encode(),
        "--encoding cp1252",
        "",
        prompts=("für",),
        is_notice=True,
    ),
    option(
        "--encoding: unknown encoding 'utf8000'; use utf-8, utf-16, cp1252, or another name that Python knows",
        "a.txt",
        "a cat\n",
        "--encoding utf8000",
        "--encoding utf-8",
    ),
)

YAML: tuple[MessageCase, ...] = (
    file(
        "a.yaml",
        'a.yaml:1: "a cat: red" is a key and its value; put the prompt in quotes',
        "- a cat: red\n",
        '- "a cat: red"\n',
        prompts=("a cat: red",),
    ),
    file(
        "a.yaml",
        "a.yaml:1: invalid YAML (found character that cannot start any token); use spaces instead of tabs",
        "-\tprompt: a cat\n",
        "- prompt: a cat\n",
    ),
    file(
        "a.yaml",
        'a.yaml:1: invalid YAML (<…>); put a prompt in quotes if it contains ": " or " #", '
        "or begins with one of { [ * & ! | > @ % `",
        "- prompt: a cat: on a roof\n",
        '- prompt: "a cat: on a roof"\n',
        prompts=("a cat: on a roof",),
    ),
    file(
        "a.yaml",
        "a.yaml: cannot be read as YAML (<…>); write JSON instead",
        "- a cat\x01\n",
        '["a cat"]',
    ),
    file(
        "a.yaml",
        "a.yaml:2: the reference *x is not read; write out what it refers to",
        "- &x a cat\n- *x\n",
        "- a cat\n- a cat\n",
        prompts=("a cat", "a cat"),
    ),
    file(
        "a.yaml", "a.yaml:1: the tag tag:yaml.org,2002:str is not read; leave it out", "- !!str a cat\n", "- a cat\n"
    ),
    file(
        "a.yaml",
        "a.yaml:1: a key that is a list or mapping is not read; use text as the key",
        "- {? [a]: a cat}\n",
        "- a cat\n",
    ),
    file(
        "a.yaml",
        'a.yaml:1: duplicate key "prompt"; keep one',
        "- {prompt: a cat, prompt: a dog}\n",
        "- {prompt: a cat}\n",
    ),
    file(
        "a.yaml",
        "a.yaml:1: nested more than 100 levels deep; keep metadata flat",
        "- {prompt: a cat, metadata: {a: " + "[" * 101 + "]" * 101 + "}}",
        "- {prompt: a cat, metadata: {a: 1}}",
    ),
    file(
        "a.yaml",
        "a.yaml: comments after values are left out: 1, the first in line 1",
        "- a cat # on a roof\n",
        '- "a cat # on a roof"\n',
        prompts=("a cat # on a roof",),
        is_notice=True,
    ),
    file(
        "a.yaml",
        'a.yaml: byte 4 (0xfc) is not UTF-8; save the file as UTF-8 (in Excel "CSV UTF-8"), or read '
        "it with --encoding cp1252 if Excel or Windows wrote it",
        b"- f\xfcr\n",
        "- für\n",
        prompts=("für",),
    ),
    file(
        "a.yaml",
        'a.yaml: "a cat" is neither an array nor an object; write [{"prompt": "…"}, …], ["a '
        'prompt", …] or {"an id": "a prompt", …}',
        "a cat\n",
        "- a cat\n",
    ),
)

MARKDOWN: tuple[MessageCase, ...] = (
    file(
        "a.md",
        "a.md: a Markdown file without list items; write each prompt as a list item (- a prompt), "
        "or save the file as .txt with one prompt per line",
        "a cat\n",
        "- a cat\n",
    ),
    file(
        "a.md",
        "a.md:1: the item has a list of its own; make it a heading (# …), and move its items to the left",
        "- Cats\n  - a cat\n",
        "# Cats\n- a cat\n",
    ),
    file(
        "a.md",
        "a.md:1: the item has a heading, a quotation or code in it; write the prompt as plain text",
        "- > a cat\n",
        "- a cat\n",
    ),
    file(
        "a.md",
        "a.md:1: line 2 continues the item, but is not indented; indent it if it belongs to the "
        "prompt, else put an empty line before it",
        "- a cat\non a roof\n",
        "- a cat\n  on a roof\n",
        prompts=("a cat on a roof",),
    ),
    file(
        "a.md",
        "a.md:1: line 2 continues the item, but is not indented; indent it if it belongs to the "
        "prompt, else put an empty line before it",
        "- a cat\nother text\n",
        "- a cat\n\nother text\n",
    ),
    file(
        "a.md",
        "a.md: prompts that keep their Markdown, such as **bold**: 1, the first in line 1",
        "- a **black** cat\n",
        "- a cat\n",
        is_notice=True,
    ),
    file(
        "a.md",
        "a.md: check boxes are not part of the prompts (1 item), and ticked items are read, too",
        "- [ ] a cat\n",
        "- a cat\n",
        is_notice=True,
    ),
)

SYNTAX: tuple[MessageCase, ...] = (
    option(
        "a.txt:1: nothing was submitted, since 1 of 1 row has arguments of Midjourney; "
        "--prompt-syntax midjourney reads --ar and --seed, --prompt-syntax plain sends prompts as "
        "they are",
        "a.txt",
        "a cat --ar 16:9\n",
        "",
        "--prompt-syntax midjourney",
        only_run=True,
    ),
    option(
        "a.txt:1: nothing was submitted, since 1 of 1 row has arguments of Midjourney; "
        "--prompt-syntax midjourney reads --ar and --seed, --prompt-syntax plain sends prompts as "
        "they are",
        "a.txt",
        "a cat --ar 16:9\n",
        "",
        "--prompt-syntax plain",
        prompts=("a cat --ar 16:9",),
        only_run=True,
    ),
    option(
        "a.txt:1: nothing was submitted, since 1 of 1 row has the syntax of A1111; --prompt-syntax "
        "a1111 reads it, --prompt-syntax plain sends prompts as they are",
        "a.txt",
        "a (cat:1.2)\n",
        "",
        "--prompt-syntax a1111",
        only_run=True,
    ),
    option(
        "a.txt:1: nothing was submitted, since 1 of 1 row has dynamic prompts; --prompt-syntax "
        "dynamic expands them (with --wildcards DIR for __NAME__), --prompt-syntax plain sends "
        "prompts as they are",
        "a.txt",
        "a {cat|cat}\n",
        "",
        "--prompt-syntax dynamic",
        only_run=True,
    ),
    MessageCase(
        message="a.txt:1: nothing was submitted, since 1 of 1 row has a placeholder; "
        "--prompt-template 'a {color} kite' "
        "fills in the columns of a table, or values of --sweep color=red,blue, "
        "--prompt-syntax plain sends prompts as "
        "they are",
        files={"a.txt": "a {animal}\n", "a.csv": "animal\ncat\ndog\n"},
        args="a.txt",
        new_args="a.csv --prompt-template 'a {animal}'",
        prompts=BOTH,
        only_run=True,
    ),
    option(
        "a.txt:1: nothing was submitted, since 1 of 1 row has a placeholder; --prompt-template 'a {color} kite' "
        "fills in the columns of a table, or values of --sweep color=red,blue, "
        "--prompt-syntax plain sends prompts as "
        "they are",
        "a.txt",
        "a {animal}\n",
        "",
        "--prompt-template 'a {animal}' --sweep animal=cat,dog",
        prompts=BOTH,
        only_run=True,
    ),
    option(
        "a.txt:1: nothing was submitted, since 1 of 1 row has permutations of Midjourney; write {red|blue} with "
        "--prompt-syntax dynamic, or a row for each, --prompt-syntax plain sends prompts as they are",
        "a.txt",
        "a {red, blue} kite\n",
        "",
        "--prompt-syntax plain",
        prompts=("a {red, blue} kite",),
        only_run=True,
    ),
    file(
        "a.txt",
        "a.txt:1: nothing was submitted, since 1 of 1 row has weights (::), which the API does not have; write the "
        "prompt without them, --prompt-syntax plain sends prompts as they are",
        "a cat::2\n",
        "a cat\n",
        only_run=True,
    ),
    file(
        "a.txt",
        "a.txt:1: nothing was submitted, since 1 of 1 row has a URL, which the API does not "
        "open; write what the image "
        "shows, and put images that show a style into image_style_references, --prompt-syntax plain sends prompts as "
        "they are",
        "https://example.com/cat.png\n",
        "a cat\n",
        only_run=True,
    ),
    file(
        "a.txt",
        "a.txt:1: nothing was submitted, since 2 of 2 rows have the name of a file, which the "
        "API does not open; write "
        "what the image shows, --prompt-syntax plain sends prompts as they are",
        "cat.png\ndog.png\n",
        LIST,
        prompts=BOTH,
        only_run=True,
    ),
    option(
        "a.txt:1: nothing was submitted, since 2 of 2 rows have several cells of a table; --input-format tsv "
        "--no-header reads the first cell as the prompt, and --prompt-column 2 the second, "
        "--prompt-syntax plain sends "
        "prompts as they are",
        "a.txt",
        "1\ta cat\n2\ta dog\n",
        "",
        "--input-format tsv --no-header --prompt-column 2",
        prompts=BOTH,
        only_run=True,
    ),
    option(
        "a.txt:1: nothing was submitted, since 2 of 2 rows have several cells of a table; --input-format csv "
        "--no-header reads the first cell as the prompt, and --prompt-column 2 the second, "
        "--prompt-syntax plain sends "
        "prompts as they are",
        "a.txt",
        '"a cat",7\n"a dog",8\n',
        "",
        "--input-format csv --no-header",
        prompts=BOTH,
        only_run=True,
    ),
    file(
        "a.txt",
        'a.txt:1: "[cat:dog:0.5]" changes the prompt while an image is generated, which the '
        "API cannot do; write one of "
        "its parts",
        "a [cat:dog:0.5]\n",
        "a cat\n",
        "--prompt-syntax a1111",
    ),
    file(
        "a.txt",
        "a.txt:1: {animal} has only one option; fill it in, write a second option: {animal|…}, or write \\{ and \\} "
        "for braces",
        "a {big|big} {animal}\n",
        "a {big|big} cat\n",
        "--prompt-syntax dynamic",
        prompts=("a big cat",),
    ),
    file(
        "a.txt",
        'a.txt:1: no prompt in "--ar 16:9"; write the prompt before the arguments',
        "--ar 16:9\n",
        "a cat --ar 16:9\n",
        "--prompt-syntax midjourney",
    ),
    file(
        "a.txt",
        "a.txt:1: --ar is given twice; keep one of them",
        "a cat --ar 16:9 --ar 1:1\n",
        "a cat --ar 16:9\n",
        "--prompt-syntax midjourney",
    ),
    file(
        "a.txt",
        'a.txt:1: text follows --ar: "16:9 cat"; write it before the arguments',
        "a --ar 16:9 cat\n",
        "a cat --ar 16:9\n",
        "--prompt-syntax midjourney",
    ),
    file(
        "a.txt",
        'a.txt:1: both "a dog" and --prompt are given; keep one of them',
        'a dog --prompt "a cat"\n',
        '--prompt "a cat"\n',
        "--prompt-syntax a1111",
    ),
    file(
        "a.txt",
        'a.txt:1: a quote of --prompt is not closed; write --prompt "…", and \\" for a quote in it',
        '--prompt "a cat\n',
        '--prompt "a cat"\n',
        "--prompt-syntax a1111",
    ),
    option(
        'a.txt:2: "Negative prompt: dogs" has no prompt; read the text as a whole: --whole-file, or --separator',
        "a.txt",
        "a cat\nNegative prompt: dogs\nSteps: 20, Seed: 7\n",
        "--prompt-syntax a1111",
        "--prompt-syntax a1111 --whole-file",
    ),
    file(
        "a.txt",
        'a.txt:1: --seed is "x"; write a whole number',
        "a cat --seed x\n",
        "a cat --seed 7\n",
        "--prompt-syntax midjourney",
    ),
    file(
        "a.txt",
        'a.txt:1: --ar is "wide"; use one of 1:1, 4:3, 3:2, 16:9, 2.35:1, 4:5, 2:3, 9:16',
        "a cat --ar wide\n",
        "a cat --ar 16:9\n",
        "--prompt-syntax midjourney",
    ),
    file(
        "a.txt",
        'a.txt:1: --ar is "2:1", an aspect ratio that the API does not have; use one of 1:1, 4:3, '
        "3:2, 16:9, 2.35:1, 4:5, 2:3, 9:16; the nearest is 16:9",
        "a cat --ar 2:1\n",
        "a cat --ar 16:9\n",
        "--prompt-syntax midjourney",
    ),
    file(
        "a.txt",
        "a.txt:1: width and height are 512:0; use one of 1:1, 4:3, 3:2, 16:9, 2.35:1, 4:5, 2:3, 9:16",
        '--prompt "a cat" --width 512 --height 0\n',
        '--prompt "a cat" --width 512 --height 512\n',
        "--prompt-syntax a1111",
    ),
    file(
        "jobs.jsonl",
        "jobs.jsonl:1: seed is 8 in the row and 7 in its prompt; keep one of them",
        '{"prompt": "a cat --seed 7", "seed": 8}',
        '{"prompt": "a cat --seed 7"}',
        "--prompt-syntax midjourney",
    ),
    file(
        "jobs.jsonl",
        'jobs.jsonl:1: the metadata already has "original_prompt"; rename that column or key',
        '{"prompt": "a cat --v 6", "metadata": {"original_prompt": 1}}',
        '{"prompt": "a cat --v 6", "metadata": {"first_prompt": 1}}',
        "--prompt-syntax midjourney",
    ),
    file(
        "a.txt",
        'a.txt:1: a brace is not closed in "a {cat|cat"; close it, or write \\{ for a brace',
        "a {cat|cat\n",
        "a {cat|cat}\n",
        "--prompt-syntax dynamic",
    ),
    file(
        "a.txt",
        'a.txt:1: a closing brace without an opening one in "a {cat|cat}}"; write \\} for a brace',
        "a {cat|cat}}\n",
        "a {cat|cat}\\}\n",
        "--prompt-syntax dynamic",
        prompts=("a cat}",),
    ),
    file(
        "a.txt",
        'a.txt:1: variables such as "${x=cat}{a|b}" are not read; write the value itself',
        "a ${x=cat}{a|b}\n",
        "a {cat|cat}\n",
        "--prompt-syntax dynamic",
    ),
    file(
        "a.txt",
        "a.txt:1: all weights of a variant are 0; give one of them a weight above 0",
        "a {0::cat|0::dog}\n",
        "a {1::cat|0::dog}\n",
        "--prompt-syntax dynamic",
    ),
    MessageCase(
        message="a.txt:1: no values for the wildcard __pet__; pass --wildcards DIR with its values in "
        "pet.txt, one per line",
        files={"a.txt": "a __pet__\n", "w/pet.txt": "cat\n"},
        args="a.txt --prompt-syntax dynamic",
        new_args="a.txt --prompt-syntax dynamic --wildcards w",
    ),
    MessageCase(
        message="a.txt:1: no values for the wildcard __pets__; the wildcards are pet",
        files={"a.txt": "a __pets__\n", "w/pet.txt": "cat\n"},
        args="a.txt --prompt-syntax dynamic --wildcards w",
        new_files={"a.txt": "a __pet__\n"},
    ),
    MessageCase(
        message="a.txt:1: no values for the wildcard __pet__; write its values into pet.txt, one per line",
        files={"a.txt": "a __pet__\n", "w/pet.txt": "\n"},
        args="a.txt --prompt-syntax dynamic --wildcards w",
        new_files={"w/pet.txt": "cat\n"},
    ),
    MessageCase(
        message="a.txt:1: choices are nested more than 50 deep; a wildcard may refer to itself",
        files={"a.txt": "a __pet__\n", "w/pet.txt": "__pet__\n"},
        args="a.txt --prompt-syntax dynamic --wildcards w",
        new_files={"w/pet.txt": "cat\n"},
    ),
    MessageCase(
        message="a.txt:1: the prompt has more than 1,000 choices; use fewer wildcards in wildcards",
        files={"a.txt": "__a__\n", "w/a.txt": "__b____b__\n", "w/b.txt": "{1000$$" + "x|" * 600 + "x}\n"},
        args="a.txt --prompt-syntax dynamic --wildcards w",
        new_files={"w/a.txt": "a cat\n"},
    ),
    MessageCase(
        message="w: has no wildcard files; write one value per line into NAME.txt for __NAME__",
        files={"a.txt": "a __pet__\n", "w/pet.md": "cat\n"},
        args="a.txt --prompt-syntax dynamic --wildcards w",
        new_files={"w/pet.txt": "cat\n"},
    ),
    MessageCase(
        message="w: cannot read the wildcards (w/pet.txt: not UTF-8); save them as UTF-8 text files",
        files={"a.txt": "a __pet__\n", "w/pet.txt": b"f\xfcr\n"},
        args="a.txt --prompt-syntax dynamic --wildcards w",
        new_files={"w/pet.txt": "cat\n"},
    ),
)

CASES = TEXTS + YAML + MARKDOWN + SYNTAX
