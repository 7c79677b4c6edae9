"""A run's folder comes in; a page of its pictures goes out: as one file, or served while they arrive.

    ledger ─ items ─┬─► report   one HTML file with thumbnails and charts in it
                    └─► server   the same page on this machine, live by server-sent events

thumbnails   pictures made small, in threads
charts       what the run was like, as SVG
page/        the page itself: a template, a style sheet, a script; no other network than its own

Newcomers: a run is only read, and may be of another process.
"""
