"""The options of commands that run the engine, most of them derived from the table in `krea_batch.settings`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import click

from krea_batch.cli.ui.error_messages import option_of
from krea_batch.settings import KEY_VARIABLE, OPTIONS, Option, Rate, Settings, parse_duration_s

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

TYPES = get_type_hints(Settings)
DEFAULTS = {field.name: field.default for field in Settings.fields()}


class RunOption(click.Option):
    """An option with properties that click does not have.

    `example` is a value for the settings file where there is no default. `file` says whether the settings file may
    set the option; see `krea_batch.settings.Option`.
    """

    def __init__(self, *args: Any, example: Any = None, file: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.example = example
        self.file = file


def key_of(field: str) -> str:
    """Return the click parameter of a setting: its name without the unit."""
    return field.removesuffix("_s")


def setting_option(field: str, **changes: Any) -> Decorator:
    """Return the option of a setting. `changes` replace what the table says (`help`, `default`)."""
    option: Option = OPTIONS[field]
    default = DEFAULTS[field] if option.command_default is None else option.command_default
    if isinstance(default, Rate):
        default = default.text
    is_empty = default in (None, ())
    named: dict[str, Any] = {
        "type": DURATION if field.endswith("_s") else _click_type(TYPES[field]),
        "is_flag": TYPES[field] is bool,
        "multiple": get_origin(TYPES[field]) is tuple,
        "default": default.value if isinstance(default, StrEnum) else default,
        "show_default": not is_empty and TYPES[field] is not bool,
        "metavar": option.metavar,
        "help": option.help + (f"  [default: {option.none_means}]" if option.none_means and is_empty else ""),
        "example": option.example,
        "file": option.file,
        "cls": RunOption,
    }
    return click.option(option_of(field), key_of(field), **named | changes)


NO_LIMIT = "none"


class Price(click.ParamType[float]):
    """A price per image in any currency."""

    name = "price"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number. Fails for text, which may have a currency, and for what is no price."""
        try:
            price = float(value)
        except ValueError:
            price = math.nan
        if not 0 <= price < math.inf:
            self.fail(f"{value!r} is not a price. Write a number without a currency: 0.05", param, ctx)
        return price


PRICE = Price()


class Duration(click.ParamType[float]):
    """A time in seconds, or with a unit."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        try:
            return parse_duration_s(str(value))
        except ValueError:
            self.fail(f"{value!r} is not a time. Write 30m, 1h30m, 90s, or a number of seconds.", param, ctx)


DURATION = Duration()


class NumberOrNone(click.ParamType[Any]):
    """A number, or `none` for no limit, which differs from an option that is not given."""

    name = "integer or none"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return NO_LIMIT if value == NO_LIMIT else click.INT.convert(value, param, ctx)


def _click_type(hint: Any) -> Any:
    if hint == int | None:
        return NumberOrNone()
    kind = next((arg for arg in get_args(hint) if arg is not type(None)), hint)
    if issubclass(kind, StrEnum):
        return click.Choice([choice.value for choice in kind])
    return {Rate: str}.get(kind, kind)


def api_key_file_option(**changes: Any) -> Decorator:
    """Return the option that names the file of the API key."""
    named: dict[str, Any] = {
        "type": click.Path(path_type=Path, dir_okay=False),
        "help": f"Read the API key from a file instead of {KEY_VARIABLE}.",
    }
    return click.option("--api-key-file", **named | changes)


_COMMAND_OPTIONS: tuple[Decorator, ...] = (
    api_key_file_option(),
    click.option(
        "--webhook-listen",
        metavar="HOST:PORT",
        help="Listen on this address for callbacks from the gateway, so that fewer polls are needed.",
    ),
    click.option(
        "--webhook-url",
        metavar="URL",
        help="URL at which the gateway reaches --webhook-listen: https, except on loopback.",
    ),
    click.option("--simulate", is_flag=True, help="Use the built-in offline gateway: real PNGs, no key, no cost."),
    click.option(
        "--time-scale",
        type=click.FloatRange(min=0, min_open=True),
        default=1.0,
        metavar="X",
        help="With --simulate: generate images X times as fast.",
    ),
    click.option("--quiet", "-q", is_flag=True, help="Print only errors."),
    click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object on standard output."),
    click.option("--verbose", "-v", count=True, help="Log to standard error; -vv also logs each change of state."),
    click.option(
        "--log-file",
        type=click.Path(path_type=Path, dir_okay=False),
        help="Append the log to a file instead; -vv also logs each change of state.",
    ),
    click.option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        show_default=True,
        cls=RunOption,
        file=True,
        help="Format of a log line: key=value, or a JSON object.",
    ),
    click.option(
        "--no-thumbnails",
        is_flag=True,
        help="Do not make thumbnails as images arrive. `view` and `report` make them later, and then take longer.",
    ),
    click.option(
        "--metrics-port",
        metavar="[HOST:]PORT",
        help="Serve Prometheus metrics during the run, on loopback unless HOST is given; 0: any free port.",
    ),
)


def add_options(options: tuple[Decorator, ...], command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options to a command, in this order."""
    for option in reversed(options):
        command = option(command)
    return command


def forecast_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the settings that change a run's duration or its polls."""
    return add_options(tuple(setting_option(field) for field, option in OPTIONS.items() if option.forecast), command)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add all options of a command that runs the engine."""
    settings = tuple(setting_option(field) for field, option in OPTIONS.items() if option.command_line)
    return add_options(settings + _COMMAND_OPTIONS, command)


def run_option_names() -> list[str]:
    """Return the parameters of `run_options`."""
    command = click.Command("run")
    run_options(command)
    return [option.name for option in command.params if option.name]


def given_settings(options: Mapping[str, Any], *, forecast_only: bool = False) -> dict[str, Any]:
    """Return the fields of `Settings` among a command's options, without those that are None or have no limit."""
    return {
        field: options[key_of(field)]
        for field, option in OPTIONS.items()
        if options.get(key_of(field)) not in (None, NO_LIMIT) and (option.forecast or not forecast_only)
    }
