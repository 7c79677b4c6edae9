"""Logging and metrics as the options configure them."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krea_batch.cli.ui.formatting import printable, printable_json, say
from krea_batch.cli.ui.optional_deps import install_command
from krea_batch.errors import InputError, SettingsError

if TYPE_CHECKING:
    from krea_batch.observability import MetricsListener


_LOG_LINE = re.compile(rb'(\{"time":")?\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z')


def configure_logging(options: Mapping[str, Any]) -> None:
    """Log to --log-file if there is one, else to standard error if --verbose is set.

    The files of the run in `out` cannot be logged to. Errors and pauses are logged; with -vv also each change of a
    job's state. Raises SettingsError.
    """
    log_file, verbose = options["log_file"], options["verbose"]
    if not (verbose or log_file):
        return
    from krea_batch.observability import JsonFormatter, LogfmtFormatter

    handler = _file_handler(log_file, options["out"]) if log_file else logging.StreamHandler()
    handler.setFormatter(
        _EscapingFormatter(JsonFormatter(), printable_json)
        if options["log_format"] == "json"
        else _EscapingFormatter(LogfmtFormatter(), _printable_lines)
    )
    logging.basicConfig(handlers=[handler], level=logging.DEBUG if verbose > 1 else logging.INFO)


class _EscapingFormatter(logging.Formatter):
    """Escapes what another formatter returns: a log is read in terminals, and other libraries log to it, too."""

    def __init__(self, inner: logging.Formatter, escape: Callable[[str], str]) -> None:
        super().__init__()
        self._inner = inner
        self._escape = escape

    def format(self, record: logging.LogRecord) -> str:
        return self._escape(self._inner.format(record))


def _printable_lines(text: str) -> str:
    return "\n".join(map(printable, text.split("\n")))


def _file_handler(path: Path, out: Path) -> logging.Handler:
    """Return a handler that appends to the file, which may be in the run directory. Raises SettingsError."""
    from krea_batch.storage.outputs import check_output, open_for_append
    from krea_batch.storage.run_dir import create_directory

    try:
        check_output(path, run=out)
        create_directory(path.parent)  # it may be in --out, which may not exist yet
        fd = open_for_append(path, _is_log_line, "log")
    except OSError as error:
        raise SettingsError("log_file", f"cannot write {path} ({error.strerror})", "check the path") from None
    except InputError as error:
        raise SettingsError("log_file", error.problem, error.hint) from None
    handler = logging.FileHandler(path, encoding="utf-8", delay=True)
    handler.setStream(os.fdopen(fd, "a", encoding="utf-8"))
    return handler


def _is_log_line(line: bytes) -> bool:
    """Return whether a line starts as the lines of both formats do."""
    return _LOG_LINE.match(line) is not None


def serve_metrics(listen: str, stack: ExitStack, *, quiet: bool) -> MetricsListener:
    """Serve metrics at `listen` until the stack is closed, and return their listener. Raises SettingsError."""
    try:
        import prometheus_client

        from krea_batch.observability import MetricsListener
        from krea_batch.observability.metrics_server import Address, serve_registry
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        hint = f"run: {install_command('metrics')}"
        raise SettingsError("metrics_port", "prometheus_client is not installed", hint) from None
    # Otherwise each counter has a second series with its creation time.
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    metrics = MetricsListener()
    requested = Address.parse(listen)
    address = stack.enter_context(serve_registry(metrics.registry, requested))
    if not quiet or requested.port == 0:
        say(f"Metrics: {address.url}")
    return metrics
