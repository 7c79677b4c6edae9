"""Child processes that run this package: how they are started, and what they inherit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Collection
from typing import Any

from krea_batch.settings import KEY_VARIABLE
from krea_batch.storage.operating_system import IS_WINDOWS

OPTION_PREFIX = "KREA_BATCH_"  # of the environment variables that set options, as `cli.app.ENV_PREFIX`
_WINDOWS_GROUP = getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0)
OWN_SESSION: dict[str, Any] = {"creationflags": _WINDOWS_GROUP} if IS_WINDOWS else {"start_new_session": True}
"""Options of a child process that does not get the Ctrl-C of the terminal."""
INTERRUPT_SIGNALS: tuple[int, ...] = (
    (getattr(signal, "CTRL_BREAK_EVENT", signal.SIGTERM),) if IS_WINDOWS else (signal.SIGINT, signal.SIGTERM)
)
"""What interrupts such a child: each of them is a Ctrl-C for it. The same signal twice may arrive as one."""


def python_command(module: str, *arguments: str) -> list[str]:
    """Return the command that runs a module with this interpreter.

    Without -P, Python would import modules from the working directory, which may come from someone else: a file
    click.py there would run instead of the library.
    """
    return [sys.executable, "-P", "-m", module, *arguments]


def command_in_utf8_mode() -> list[str]:
    """Return the command that starts this process again in Python's UTF-8 mode."""
    return [sys.executable, "-X", "utf8", *sys.orig_argv[1:]]


def child_environment(*, with_key: bool, options: Collection[str] | None = None) -> dict[str, str]:
    """Return the environment for a child process, which has the API key only if the child needs it.

    `options` are the names of the variables with options of the command line that the child gets; None: all of them.
    """
    return {
        name: value
        for name, value in os.environ.items()
        if (with_key or name != KEY_VARIABLE)
        and (options is None or name in options or not name.startswith(OPTION_PREFIX))
    }


def forget_key() -> None:
    """Remove the API key from this process's environment, so that children started by other code do not get it."""
    os.environ.pop(KEY_VARIABLE, None)
