"""The options of commands that read job files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from krea_batch.cli.options.run_options import add_options
from krea_batch.cli.options.selection_options import (
    add_selection_options,
    as_error_of,
    selection_notice,
    with_selection,
)
from krea_batch.cli.ui.formatting import format_bytes, pluralize
from krea_batch.cli.ui.prompt_syntax_notices import syntax_notices

if TYPE_CHECKING:
    from krea_batch.sources import CheckResult, InputOptions
    from krea_batch.sources.options import TextUnit
    from krea_batch.sources.sweep import Axis

PROMPT_SYNTAXES = ("dynamic", "a1111", "midjourney", "plain")
INPUT_FORMATS = ("jsonl", "json", "csv", "tsv", "sheet", "text", "parquet", "yaml", "markdown")

_INPUT_OPTIONS = (
    click.option(
        "--input-format",
        type=click.Choice(INPUT_FORMATS),
        help="Format of the JOBS.  [default: by name and first bytes]",
    ),
    click.option(
        "--prompt-column",
        metavar="NAME",
        help="Column, key or path of the prompt.",
    ),
    click.option(
        "--id-column",
        metavar="NAME",
        help='Column or key of the id; "" for none, which numbers the lines.',
    ),
    click.option(
        "--column",
        multiple=True,
        metavar="FIELD=COLUMN",
        help="Column, key or path of another field: --column seed=params.seed (repeatable).",
    ),
    click.option(
        "--encoding",
        metavar="NAME",
        help="Encoding of files that are not UTF-8, e.g. cp1252; a byte order mark takes precedence.",
    ),
    click.option(
        "--no-header",
        is_flag=True,
        help="The first row of a table is a job; its columns are named 1, 2, … and the first is the prompt.",
    ),
    click.option("--sheet", default="", metavar="NAME", help="Sheet of a workbook.  [default: the first]"),
    click.option("--keep-extra", is_flag=True, help="Put unknown fields of a job line into its metadata."),
    click.option("--skip-comments", is_flag=True, help="In text files, ignore lines starting with #."),
    click.option("--lines", is_flag=True, help="In text files and directories of them, each line is a prompt."),
    click.option("--whole-file", is_flag=True, help="In text files and directories of them, each file is a prompt."),
    click.option(
        "--separator",
        metavar="TEXT",
        help="In text files, prompts have several lines and are separated by lines that are TEXT: --separator=---",
    ),
    click.option("--dedupe", is_flag=True, help="Drop jobs whose request duplicates an earlier one."),
    click.option(
        "--prompt-template",
        metavar="TEXT",
        help="Build each prompt from columns or keys: '{prompt}, oil on canvas', '{animal} at {place}'.",
    ),
    click.option(
        "--sweep",
        multiple=True,
        metavar="FIELD=A,B,…",
        help="Run each job with each of these values, e.g. creativity=raw,high. Several sweeps are combined.",
    ),
    click.option(
        "--seeds",
        metavar="RANGE",
        help="Run each job with each of these seeds: 1..4, or 7,11,12.",
    ),
    click.option("--repeat", type=int, metavar="N", help="Run each job N times, without a seed."),
    click.option(
        "--prompt-syntax",
        type=click.Choice(PROMPT_SYNTAXES),
        multiple=True,
        help="Read {a|b} and __NAME__ (dynamic) or the arguments of A1111 or Midjourney; plain sends all else as it "
        "is (repeatable).",
    ),
    click.option(
        "--name",
        metavar="TEMPLATE",
        help="Name images by fields, columns and metadata keys, not by id: '{id}_{seed}', '{animal}/{prompt}'; a "
        "slash makes a folder.",
    ),
    click.option(
        "--portable-names", is_flag=True, help="Name images with lower-case ASCII letters, digits and . _ - only."
    ),
    click.option(
        "--wildcards",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        help="With --prompt-syntax dynamic: directory with a file NAME.txt for each __NAME__.",
    ),
)


def add_input_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command that takes JOBS."""
    return add_options(_INPUT_OPTIONS, add_selection_options(command))


def input_options(options: dict[str, Any]) -> InputOptions:
    """Return how to read the files. Raises SettingsError, which names the invalid option."""
    from krea_batch.errors import SettingsError
    from krea_batch.rules.image_names import NameTemplate
    from krea_batch.sources import InputOptions
    from krea_batch.sources.dynamic_prompts import read_wildcards
    from krea_batch.sources.formats.encoding import encoding_name
    from krea_batch.sources.options import Format, PromptSyntax
    from krea_batch.sources.template import Template

    template = options["prompt_template"] or ""
    with as_error_of("encoding"):
        encoding = encoding_name(options["encoding"]) if options["encoding"] is not None else ""
    with as_error_of("prompt_template"):
        names = Template(template).names if template else ()
    with as_error_of("name"):
        if options["name"] is not None:
            NameTemplate(options["name"])
    axes = _axes(options, names)
    if options["separator"] is not None and not options["separator"].strip():
        raise SettingsError("separator", "is blank", "give the text of the lines between prompts: --separator=---")
    if options["wildcards"] and "dynamic" not in options["prompt_syntax"]:
        raise SettingsError("wildcards", "requires --prompt-syntax dynamic", "add it, or leave out --wildcards")
    read_options = InputOptions(
        format=Format(options["input_format"]) if options["input_format"] else None,
        keep_extra=options["keep_extra"],
        columns=_columns(options),
        skip_comments=options["skip_comments"],
        dedupe=options["dedupe"],
        template=template,
        axes=axes,
        encoding=encoding,
        no_header=options["no_header"],
        sheet=options["sheet"],
        text_unit=_text_unit(options),
        separator=(options["separator"] or "").strip(),
        prompt_syntax=tuple(map(PromptSyntax, options["prompt_syntax"])),
        name=options["name"] or "",
        portable_names=options["portable_names"],
        wildcards=read_wildcards(options["wildcards"]) if options["wildcards"] else {},
    )
    return with_selection(read_options, options)


def _axes(options: dict[str, Any], template_names: Sequence[str]) -> tuple[Axis, ...]:
    """Return the axes of the sweeps of all rows. Raises SettingsError."""
    from krea_batch.sources.sweep import check_axis_names, make_axis, parse_axis, parse_seeds, repeat_axis

    axes = []
    with as_error_of("sweep"):
        for text in options["sweep"]:
            axes.append(parse_axis(text))
            check_axis_names(axes, template_names)
    with as_error_of("seeds"):
        if options["seeds"] is not None:
            axes.append(make_axis("seed", parse_seeds(options["seeds"])))
    with as_error_of("repeat"):
        if options["repeat"] is not None:
            axes.append(repeat_axis(options["repeat"]))
    return tuple(axes)


def expansion_notices(checked: CheckResult) -> list[str]:
    """Return a sentence for each reason why the jobs differ from the rows, or are more or fewer."""
    notices = syntax_notices(checked)
    if checked.duplicates:
        notices.append(
            f"{pluralize(checked.duplicates, 'job')} dropped, whose requests duplicate earlier ones (--dedupe)"
        )
    if checked.repeated:
        jobs = checked.jobs + checked.unselected
        noun = "row" if jobs == checked.rows else "job"
        asks, them = ("asks", "it") if checked.repeated == 1 else ("ask", "them")
        repeated = f"{checked.repeated:,} of {pluralize(jobs, noun)}"
        notices.append(f"{repeated} {asks} for the same image as an earlier {noun}; --dedupe leaves {them} out")
    if checked.repeated_names:
        names = pluralize(checked.repeated_names, "image")
        notices.append(f"{names} would have the name of an earlier one, and get ~2, ~3 and so on after it")
    jobs = checked.jobs + checked.unselected
    if jobs + checked.duplicates != checked.rows:
        notices.append(f"{pluralize(checked.rows, 'row')} make {pluralize(jobs, 'job')}")
    if checked.references:
        images, size = pluralize(checked.references, "local reference image"), format_bytes(checked.reference_bytes)
        notices.append(f"{images}, {size}: `run` uploads those that its --references does not have yet")
    return notices + selection_notice(checked)


def _text_unit(options: dict[str, Any]) -> TextUnit | None:
    """Return what one prompt of a text file is. Raises SettingsError for options that contradict each other."""
    from krea_batch.errors import SettingsError
    from krea_batch.sources.options import TextUnit

    given = [name for name in ("lines", "whole_file", "separator") if options[name]]
    if len(given) > 1:
        raise SettingsError(given[0], f"cannot be combined with --{given[1].replace('_', '-')}", "keep one of them")
    if given and options["input_format"] not in (None, "text"):
        raise SettingsError(given[0], "is for text files", f"leave out --input-format {options['input_format']}")
    return {"lines": TextUnit.LINE, "whole_file": TextUnit.FILE}.get(given[0]) if given else None


def _columns(options: dict[str, Any]) -> dict[str, str]:
    """Return the column of each field. Raises SettingsError for an unknown or repeated field."""
    from krea_batch.errors import SettingsError
    from krea_batch.jobs import FIELDS

    columns: dict[str, str] = {}
    for field in ("prompt", "id"):
        if options[f"{field}_column"] is not None:
            columns[field] = options[f"{field}_column"]
    for text in options["column"]:
        field, equals, column = text.partition("=")
        if not equals or field not in FIELDS:
            raise SettingsError(
                "column", f"invalid value {text!r}", f"use FIELD=COLUMN; the fields are {', '.join(FIELDS)}"
            )
        if field in columns:
            raise SettingsError("column", f"{field} is given more than once", "use one column for each field")
        columns[field] = column
    return columns
