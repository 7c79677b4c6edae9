"""Paths of job files come in; checked jobs go out, in the order of their rows.

    path, pipe or "-" ─ spool ─► lines ─┬► texts, tables, documents, columnar ─► inputs ─► reader ─┬► check ─► Checked
                                        └──────────────── JSONL ───────────────┘        │      │
                                                          sweeps, template (rows to jobs)       │
                                                          jsonl, syntax, sentences (why bad)    │
                                                                                                └► job_files ─► Job, …

Newcomers: job files are read twice, once to check every row before the first cent, once to run. Memory does not grow
with the number of rows, but for JSON documents.
"""

from krea_batch.sources.check import Checked
from krea_batch.sources.job_files import JobFiles
from krea_batch.sources.options import Reading

__all__ = ["Checked", "JobFiles", "Reading"]
