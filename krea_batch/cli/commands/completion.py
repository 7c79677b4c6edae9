"""`krea-batch completion`: shell completion."""

from __future__ import annotations

import click

SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script for a SHELL.

    \b
    bash   eval "$(krea-batch completion bash)"    in ~/.bashrc
    zsh    eval "$(krea-batch completion zsh)"    in ~/.zshrc, after compinit
    fish   krea-batch completion fish > ~/.config/fish/completions/krea-batch.fish
    """
    from krea_batch.cli.ui.formatting import show

    show(*completion_script(shell).split("\n"))


def completion_script(shell: str) -> str:
    """Return the script that makes a shell complete the arguments of `krea-batch`. Raises click.UsageError."""
    from click.shell_completion import get_completion_class

    from krea_batch.cli.app import app

    completion_class = get_completion_class(shell)
    if completion_class is None:
        raise click.UsageError(f"the installed click does not support {shell}")
    return completion_class(app, {}, "krea-batch", "_KREA_BATCH_COMPLETE").source()
