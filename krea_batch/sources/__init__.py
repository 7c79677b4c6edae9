"""Paths of job files come in; checked jobs go out, in the order of their lines.

    path, pipe or "-" ─ spool ─► lines ─► jsonl ─┬► check ─► Checked          first reading
                                            │    │    │
                             syntax, sentences   │   ids (which come twice)
                             (why a line is bad) │
                                                 └► job_files ─► Job, Job, …  second reading

Newcomers: job files are read twice, once to check every line before the first cent, once to run. Memory does
not grow with the number of lines.
"""

from krea_batch.sources.check import Checked
from krea_batch.sources.job_files import JobFiles

__all__ = ["Checked", "JobFiles"]
