"""`python -m krea_batch` is `krea-batch`."""

from krea_batch.cli import main

main()
