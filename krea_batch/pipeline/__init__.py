"""The way of a job, one stage a module; each takes, asks a rule, records intent, does, records outcome, puts.

    jobs ─► producer ─► submitter ─► poll_scheduler ─► downloader ─► Outcome
               │            │  ▲           │  │              │
               │            │  └─ ERROR ───┘  │              │      (not charged: submitted again)
            slots ◄─────────┴─── an end ──────┴──────────────┘      (a slot is held from submit to end)

run         what all stages share: settings, gateway, ledger, counters, the stop
flight      one job on its way, and the slots that bound how many are
producer    jobs, from any iterable, in order → flights, as slots become free
submitter   flights → accepted ones: the only stage that spends money
poll_scheduler   accepted flights → finished ones: one heap, one task
calls       the gateway's callbacks → polls put forward, ambiguous jobs out of doubt
downloader  finished flights → pictures on disk
courier     whole pictures → the caller's sink, where there is one; `shelf` brings them to the run's folder
picture     the disk's side of one download: checked while it streams, whole when it has its name

Newcomers: stages do not know each other. The engine hands each the function that takes what it has done.
Slots are the backpressure: a slow disk or CDN keeps slots, and so slows submits; no queue needs a bound of
its own.
"""
