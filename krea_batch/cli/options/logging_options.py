"""Logging and metrics as the options configure them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from krea_batch.cli.ui.formatting import printable, printable_json, say
from krea_batch.errors import SettingsError

if TYPE_CHECKING:
    from krea_batch.observability import MetricsListener


def configure_logging(*, verbose: int, log_file: Path | None, log_format: str) -> None:
    """Log to `log_file` if there is one, else to standard error if `verbose` is set.

    Errors and pauses are logged; with `verbose` above 1 also each change of a job's state. Raises SettingsError.
    """
    if not (verbose or log_file):
        return
    from krea_batch.observability import JsonFormatter, LogfmtFormatter

    handler = _file_handler(log_file) if log_file else logging.StreamHandler()
    as_json = log_format == "json"
    handler.setFormatter(
        _EscapingFormatter(JsonFormatter(), printable_json)
        if as_json
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


def _file_handler(path: Path) -> logging.Handler:
    from krea_batch.storage.run_dir import create_directory

    try:
        create_directory(path.parent)  # it may be --out, which does not exist yet
        return logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        raise SettingsError("log_file", f"cannot write {path} ({error.strerror})", "check the path") from None


def serve_metrics(listen: str, stack: ExitStack, *, quiet: bool) -> MetricsListener:
    """Serve metrics at `listen` until the stack is closed, and return their listener. Raises SettingsError."""
    try:
        import prometheus_client

        from krea_batch.observability import MetricsListener
        from krea_batch.observability.metrics_server import Address, serve_registry
    except ModuleNotFoundError as error:
        if error.name != "prometheus_client":
            raise
        hint = "pip install 'krea-batch[metrics]'"
        raise SettingsError("metrics_port", "prometheus_client is not installed", hint) from None
    # Otherwise each counter has a second series with its creation time.
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    metrics = MetricsListener()
    requested = Address.parse(listen)
    address = stack.enter_context(serve_registry(metrics.registry, requested))
    if not quiet or requested.port == 0:
        say(f"Metrics: {address.url}")
    return metrics
