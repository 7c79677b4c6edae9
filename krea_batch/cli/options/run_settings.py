"""The settings and the API key of a run, from the options of a command."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from krea_batch.cli.options.run_options import given_settings
from krea_batch.errors import InputError, SettingsError
from krea_batch.settings import KEY_VARIABLE, ApiKey, Settings, Webhook

SIMULATED_KEY = ApiKey("simulated")  # The simulator takes any key.


def settings_and_key(options: dict[str, Any]) -> tuple[Settings, ApiKey | None]:
    """Return settings and API key from the options; the key is None with --simulate. Raises SettingsError."""
    fields = given_settings(options)
    if options["webhook_listen"]:
        fields["webhook"] = Webhook(options["webhook_url"] or "", options["webhook_listen"])
    elif options["webhook_url"]:
        raise SettingsError("webhook.url", "requires --webhook-listen HOST:PORT")
    settings = Settings.from_options(options["out"], **fields)
    if options["simulate"]:
        return settings, None
    return settings, find_key(options["api_key_file"])


def gateway_key(key_file: Path | None, *, simulate: bool) -> ApiKey:
    """Return the API key for the gateway of a run, as `find_key` does; any key if it is the simulator."""
    return SIMULATED_KEY if simulate else find_key(key_file)


def find_key(key_file: Path | None) -> ApiKey:
    """Return the API key from the file or the environment. Raises InputError with the possible sources."""
    if key_file is None:
        if text := os.environ.get(KEY_VARIABLE, ""):
            try:
                return ApiKey(text)
            except SettingsError as error:
                raise InputError(f"{KEY_VARIABLE}: {error.problem}", error.hint) from None
        raise InputError(
            "no API key",
            f"set {KEY_VARIABLE} or pass --api-key-file FILE; to try krea-batch without a key and free of charge, "
            "add --simulate",
        )
    try:
        return ApiKey(key_file.read_text("utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise SettingsError("api_key_file", f"cannot read {key_file} ({reason})", "check the path") from None
