"""Errors as the command line shows them: with options instead of parameters, and with what explains them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from krea_batch.cli.ui.formatting import say

if TYPE_CHECKING:
    from krea_batch.errors import KreaBatchError


def say_error(error: KreaBatchError) -> None:
    """Print an error, and the command that explains it if one does."""
    from krea_batch.cli.ui.explanations import further_reading, messages_of

    text = error_text(error)
    say(f"krea-batch: {text}")
    for line in further_reading(messages_of(error, text)):
        say(line)


def error_text(error: Exception) -> str:
    """Return an error as the command line shows it: with options instead of parameters."""
    from krea_batch.errors import InputError, JobFileError, RunStopped, SettingsError

    if isinstance(error, SettingsError):
        return f"{option_of(error.parameter)}: {InputError.__str__(error)}"
    if isinstance(error, JobFileError):
        return f"{error.problem}; fix {'it' if error.count == 1 else 'them'}, or use --skip-invalid"
    return reason_text(str(error)) if isinstance(error, RunStopped) else str(error)


def reason_text(reason: str) -> str:
    """Return why a run stops as the command line shows it: with an option if it begins with a parameter."""
    from krea_batch.settings import OPTIONS

    # Only the first word is replaced: anywhere else, a name may be part of a path or of a message of the gateway.
    name, space, rest = reason.partition(" ")
    return f"{option_of(name)}{space}{rest}" if name in OPTIONS and "_" in name else reason


def option_of(parameter: str) -> str:
    """Return the option for a parameter that a SettingsError names, such as `max_in_flight` or `webhook.url`."""
    if parameter == "api_key":
        return "--api-key-file"
    if parameter == "allow_networks":
        return "--allow-network"  # one at a time
    return "--" + parameter.removesuffix("_s").replace("_", "-").replace(".", "-")
