"""The stages of a run. Each takes a job, obtains a verdict, asks a rule, records the result, and hands the job on.

    jobs ─► producer ─► submitter ─► poll_scheduler ─► downloader ─► Outcome
               │            │  ▲           │  │              │
               │            │  └─ ERROR ───┘  │              │      (not charged: submitted again)
    in-flight limit ◄───────┴── job ended ────┴──────────────┘

context           what all stages share: settings, gateway, ledger, clock, counters, the stop
emitter           emits the events of a run and writes its log lines
protocols         what the stages require of a gateway and of each other
pipeline          the stages, connected: where a job goes from each of them
executor          applies transitions: ledger, then counters, then events, then the next stage
charge_budget     counts charges against `max_charges`
coordinator       heartbeats, takeover and claims, if several runs share the directory
waiters           the futures of callers who wait for jobs
event_stream      a bounded stream of events that drops the oldest
stats             the counters of a run
in_flight_job     one job in flight, and the limit on their number
producer          reads jobs from an iterable, in order, as the limit allows
admission         the fair queue of jobs that callers submit
rate_limiter      when the next POST may be sent; shared by engines
shared_rate_limiter  the same for all runs that share a directory
submitter         POSTs jobs: the only stage that spends money
reference_uploads  uploads local reference images before the jobs that need them
poll_scheduler    polls accepted jobs: one heap of due times, one task
callback_handler  moves polls forward and resolves ambiguous jobs when callbacks arrive
downloader        downloads completed images and hands them to a writer of `storage`
task_pool         the supervised tasks of a stage

Stages do not import each other: a job goes to its next stage through the executor and `pipeline.Pipeline`. The
in-flight limit is the backpressure: a slow disk or CDN keeps jobs in flight, which slows submits, so no queue needs a
bound of its own.
"""
