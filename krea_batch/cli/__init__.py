"""The command line. Exit codes are listed in `app`.

app        the group of commands, the settings file, exit codes
commands   one module per command, named for it
options    options that several commands share
ui         what the commands print: progress, summaries, questions

`krea-batch --help` must be fast, so modules import click alone at the top, and everything else in the functions that
need it.
"""
