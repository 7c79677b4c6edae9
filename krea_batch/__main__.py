"""`python -m krea_batch` is `krea-batch`."""

from krea_batch.cli.app import main

main()
