"""Pure decisions: functions of facts, without I/O, clock or randomness.

verdicts               what an answer of the gateway means
lifecycle              transitions between states, and the decision after each verdict
backoff                retry delays with jitter, and the retry budget
circuit_breaker        holds all submits while the gateway fails, and lets one through at a time
pending_limit          how many POSTs may be pending
delivery               holds all submits while images cannot be stored
fail_fast              stops a run whose jobs all fail with the same error
rate_control           keeps the configured rate and pauses after a 429; uses the next eleven modules, to found_limit
rate_log               one rate for several runs: the events that all of them apply
send_window            no window of one second has more requests than the configured rate, plus one
answer_latency         how long answers take, and whether one is late
rate_search            holds a rate, probes above it, and estimates it again after a refusal
submit_log             when submits were sent: those without an answer, and accepted ones
window_fill            fills a window as soon as it has room
spacing_search         finds the time between two submits that a limiter without any burst requires
bucket_fit             the rates of token buckets that explain the latest refusals
window_fit             the numbers of windows of a second that explain them
limit_estimate         what a refusal shows about a rate limit of any shape
jobs_limit             recognises a limit on the jobs in process, and caps them
found_limit            the limit that was found, in words and for the next run
latency_estimate       how long jobs take, from completed jobs and from polls that found jobs unfinished
poll_trials            when jobs end, if the gateway does not say so
poll_schedule          when to poll, from the latencies observed so far
poll_schedule_by_kind  separate poll schedules for kinds of jobs with different latencies
callback_reliability   whether the gateway delivers callbacks reliably
round_robin            a queue that serves tenants in turn
lease                  which runs of a shared run directory are alive
image_names            names of images from templates, and names that other systems take
"""
