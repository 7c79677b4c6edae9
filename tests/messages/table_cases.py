"""Messages about tables: CSV, TSV, workbooks and Parquet."""

from __future__ import annotations

from tests.messages.contents import parquet, workbook
from tests.messages.message_case import MessageCase, file, option

CSV = "prompt\na cat\n"
LONG = "x" * ((1 << 20) + 10)

CASES: tuple[MessageCase, ...] = (
    file(
        "a.parquet",
        'a.parquet: the column "prompt" is binary; write it as a column of strings',
        parquet([{"prompt": b"a cat"}]),
        parquet([{"prompt": "a cat"}]),
    ),
    option(
        "a.tsv:2: quotes seem to enclose a cell; set --input-format csv to read the cell in them, "
        "or tsv to keep the quotes",
        "a.tsv",
        'prompt\tseed\n"a cat"\t7\n',
        "",
        "--input-format csv",
    ),
    option(
        "a.tsv:2: quotes seem to enclose a cell; set --input-format csv to read the cell in them, "
        "or tsv to keep the quotes",
        "a.tsv",
        'prompt\tseed\n"a cat"\t7\n',
        "",
        "--input-format tsv",
        prompts=('"a cat"',),
    ),
    option(
        "a.csv:2: the row has 2 cells, and the header has 1; put cells that contain the separator "
        "in quotes, or remove the extra cell; --input-format tsv reads each line as one cell",
        "a.csv",
        "prompt\na cat, red\n",
        "",
        "--input-format tsv",
        prompts=("a cat, red",),
    ),
    file(
        "a.csv",
        "a.csv:2: the row has 3 cells, and the header has 2; remove the spaces before quotes",
        'prompt, note\n"a cat", "b, c"\n',
        'prompt,note\n"a cat","b, c"\n',
    ),
    file(
        "a.tsv",
        "a.tsv:2: the row has 3 cells, and the header has 2; remove the extra cell, or set "
        "--input-format csv if quotes enclose cells",
        "prompt\tnote\na cat\tb\tc\n",
        "prompt\tnote\na cat\tb c\n",
    ),
    file(
        "a.csv",
        'a.csv:2: "seed" is "1E+03"; write all its digits; in a spreadsheet, format the column as a '
        "number without decimals",
        "prompt,seed\na cat,1E+03\n",
        "prompt,seed\na cat,1000\n",
    ),
    file(
        "a.csv",
        'a.csv:2: "seed" is "null"; leave it empty, or leave it out',
        "prompt,seed\na cat,null\n",
        "prompt,seed\na cat,\n",
    ),
    file(
        "a.xlsx",
        "a.xlsx: a workbook without sheets; name another file",
        workbook({}),
        workbook({"One": [["prompt"], ["a cat"]]}),
    ),
    file(
        "a.csv",
        "a.csv:2: the row has 3 cells, and the header has 2; "
        "put cells that contain the separator in quotes, or remove the extra cell",
        "prompt,note\na cat,x,y\n",
        'prompt,note\na cat,"x,y"\n',
    ),
    file(
        "a.csv",
        'a.csv:2: "metadata" is "x"; write an object: {"key": "value"}',
        "prompt,metadata\na cat,x\n",
        'prompt,metadata\na cat,"{""key"": ""value""}"\n',
    ),
    file(
        "a.csv",
        'a.csv:2: "note" is both a column and a key of the metadata; keep one of them',
        'prompt,metadata,note\na cat,"{""note"": 1}",x\n',
        "prompt,note\na cat,x\n",
    ),
    file(
        "a.csv",
        'a.csv: two columns are named "note"; rename one of them; or add --no-header if the first '
        "row is not a header",
        "prompt,note,note\na cat,x,y\n",
        "prompt,note,other\na cat,x,y\n",
    ),
    option(
        'a.csv: there is no column "wishes"; did you mean "wish"?',
        "a.csv",
        "wish\na cat\n",
        "--prompt-column wishes",
        "--prompt-column wish",
    ),
    option(
        'a.csv: there is no column "motif"; the columns are "wish"; or add --no-header if the first '
        "row is not a header",
        "a.csv",
        "wish\na cat\n",
        "--prompt-column motif",
        "--prompt-column wish",
    ),
    option(
        'a.csv: "nr" is assigned to both id and seed; choose two different columns',
        "a.csv",
        "prompt,nr\na cat,7\n",
        "--column seed=nr --id-column nr",
        "--column seed=nr",
    ),
    option(
        'a.csv:2: no "animal" for the template; the row has "prompt"',
        "a.csv",
        "prompt\na cat\n",
        "--prompt-template '{animal}'",
        "--prompt-template '{prompt}'",
    ),
    option(
        'a.csv: the template uses beast, but no column has that name; the columns are "animal"',
        "a.csv",
        "animal\na cat\n",
        "--prompt-template '{beast}'",
        "--prompt-template '{animal}'",
    ),
    option(
        'a.csv: "prompt" is assigned to id, so no column is left for the prompt; choose another '
        "column for id, or set --prompt-column",
        "a.csv",
        CSV,
        "--id-column prompt",
        "",
    ),
    option(
        'a.csv: no column is named prompt; set --prompt-column; the columns are "wish", "nr"; or '
        "add --no-header if the first row is not a header",
        "a.csv",
        "wish,nr\na cat,7\n",
        "",
        "--prompt-column wish",
    ),
    option(
        "a.csv: no column is named prompt; if the first row is a prompt and not a header, add "
        '--no-header; else set --prompt-column; the columns are "a cat on a roof", "7"',
        "a.csv",
        "a cat on a roof,7\na dog,8\n",
        "",
        "--no-header",
        prompts=("a cat on a roof", "a dog"),
    ),
    option(
        'a.csv: no column is named prompt; set --prompt-column; the columns are "wish"; or add '
        "--no-header if the first row is not a header",
        "a.csv",
        "wish\na cat\n",
        "",
        "--no-header",
        prompts=("wish", "a cat"),
    ),
    file(
        "a.csv",
        "a.csv: no column is named prompt; line 3 looks like the header; remove the lines before it",
        "My prompts\n\nprompt\na cat\n",
        CSV,
    ),
    option(
        "a.csv: the first row is a header; leave out --no-header, or remove the row", "a.csv", CSV, "--no-header", ""
    ),
    file(
        "a.csv",
        'a.csv:1: cannot read the header: the quote of a cell is never closed; close it, or write " '
        'in a quoted cell as ""',
        '"prompt\na cat\n',
        '"prompt"\na cat\n',
    ),
    file(
        "a.csv",
        'a.csv:2: the quote of a cell is never closed; close it, or write " in a quoted cell as ""',
        'prompt\n"a cat\n',
        'prompt\n"a cat"\n',
    ),
    file(
        "a.csv",
        "a.csv:2: cannot read the row (',' expected after '\"'); "
        'write " in a quoted cell as "", and no spaces around quotes',
        'prompt\n"a" cat\n',
        'prompt\n"""a"" cat"\n',
        prompts=('"a" cat',),
    ),
    file(
        "a.csv",
        "a.csv:2: a cell is longer than 1 MiB; close its quote, or leave out the column with the long cells",
        f'prompt,image\na cat,"{LONG}"\n',
        CSV,
    ),
    file(
        "a.csv",
        "a.csv:2: the line is longer than 1 MiB; leave out the column with the long cells",
        "prompt,image\na cat," + LONG * 3,
        CSV,
    ),
    file(
        "a.csv",
        "a.csv:3: a carriage return (CR) in the row: line ends are mixed; convert them: tr '\\r' '\\n' < OLD > NEW",
        "prompt\na cat\na dog\ran owl\n",
        "prompt\na cat\na dog\nan owl\n",
        prompts=("a cat", "a dog", "an owl"),
    ),
    file(
        "a.tsv",
        "a.tsv:3: a carriage return (CR) in the row: line ends are mixed; convert them: tr '\\r' '\\n' < OLD > NEW",
        "prompt\na cat\na dog\ran owl\n",
        "prompt\na cat\na dog\nan owl\n",
        prompts=("a cat", "a dog", "an owl"),
    ),
    option(
        'a.csv:2: byte 0xfc is not UTF-8; save the file as UTF-8 (in Excel "CSV UTF-8"), or read it '
        "with --encoding cp1252 if Excel or Windows wrote it",
        "a.csv",
        b"prompt\nf\xfcr\n",
        "",
        "--encoding cp1252",
        prompts=("für",),
    ),
    file(
        "a.csv",
        'a.csv:2: byte 0xfc is not UTF-8; save the file as UTF-8 (in Excel "CSV UTF-8"), or read it '
        "with --encoding cp1252 if Excel or Windows wrote it",
        b"prompt\nf\xfcr\n\xe4h\n",
        "prompt\nfür\näh\n",
        prompts=("für", "äh"),
    ),
    file(
        "a.csv",
        'a.csv:2: "prompt" is #NAME?, the error value of a spreadsheet; write the prompt as text',
        "prompt\n#NAME?\n",
        CSV,
    ),
    file(
        "a.csv",
        'a.csv:2: "prompt" is empty; write a prompt, or remove the row',
        "prompt,done\n,x\na cat,\n",
        "prompt,done\na cat,\n",
    ),
    file(
        "a.csv",
        "a.csv: left out 1 row without a prompt at the end, in line 3",
        "prompt,done\na cat,x\n,x\n",
        "prompt,done\na cat,x\n",
        is_notice=True,
    ),
    file(
        "a.csv",
        "a.csv: left out 1 row like the header, in line 3",
        "prompt\na cat\nprompt\n",
        "prompt\na cat\n",
        is_notice=True,
    ),
    file(
        "a.csv",
        'a.csv: "Sead" was put into the metadata; did you mean "seed"?',
        "prompt,Sead\na cat,7\n",
        "prompt,seed\na cat,7\n",
        is_notice=True,
    ),
    file(
        "a.csv",
        'a.csv:2: "styles" is "[{" (the line ends before the object is complete); write JSON: '
        '[{"id": "…", "strength": 1.0}]',
        'prompt,styles\na cat,"[{"\n',
        "prompt,styles\na cat,\n",
    ),
    file(
        "a.csv",
        "1 of 2 rows asks for the same image as an earlier row; --dedupe leaves it out",
        "prompt\na cat\na cat\n",
        CSV,
        is_notice=True,
    ),
    option(
        "1 of 2 rows asks for the same image as an earlier row; --dedupe leaves it out",
        "a.csv",
        "prompt\na cat\na cat\n",
        "",
        "--dedupe",
        is_notice=True,
    ),
    option(
        'a.xlsx: there is no sheet "Two"; the sheets are "One"',
        "a.xlsx",
        workbook({"One": [["prompt"], ["a cat"]]}),
        "--sheet Two",
        "--sheet One",
    ),
    option(
        'a.xlsx: read the sheet "One" only; --sheet names another: "Two"',
        "a.xlsx",
        workbook({"One": [["prompt"], ["a cat"]], "Two": [["x"]]}),
        "",
        "--sheet One",
        is_notice=True,
    ),
    option(
        'a.xlsx: no column is named prompt; set --prompt-column; the columns are "x"; or add '
        '--no-header if the first row is not a header; or name another sheet with --sheet: "Two"',
        "a.xlsx",
        workbook({"One": [["x"], ["y"]], "Two": [["prompt"], ["a cat"]]}),
        "",
        "--sheet Two",
    ),
    file(
        "a.xlsx",
        "a.xlsx: cannot be read as a workbook (<…>); open it in a spreadsheet program, and save it "
        "as .xlsx, .ods or CSV UTF-8",
        b"PK\x03\x04 not a workbook",
        workbook({"One": [["prompt"], ["a cat"]]}),
    ),
    file(
        "a.xlsx",
        "a.xlsx: cannot be read as a workbook (<…>); open it in a spreadsheet program, and save it "
        "as .xlsx, .ods or CSV UTF-8",
        "prompt\na cat\n",
        workbook({"One": [["prompt"], ["a cat"]]}),
    ),
    option("--sheet is given, but no file is a workbook; leave it out", "a.csv", CSV, "--sheet One", ""),
    option(
        "--no-header is given, but no file is a table; leave it out, or set --input-format csv",
        "jobs.jsonl",
        '{"prompt": "a cat"}',
        "--no-header",
        "",
    ),
    file(
        "a.parquet",
        "a.parquet: cannot be read as a Parquet file (<…>); copy or write it again, or name its "
        "format with --input-format",
        b"not Parquet",
        parquet([{"prompt": "a cat"}]),
    ),
    option(
        "a.parquet: cannot be read as a Parquet file (<…>); copy or write it again, or name its "
        "format with --input-format",
        "a.parquet",
        "prompt\na cat\n",
        "",
        "--input-format csv",
    ),
    file(
        "a.parquet",
        'a.parquet: "Sead" was put into the metadata; did you mean "seed"?',
        parquet([{"prompt": "a cat", "Sead": 7}]),
        parquet([{"prompt": "a cat", "seed": 7}]),
        is_notice=True,
    ),
)
