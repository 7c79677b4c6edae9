"""The library's public API.

engine          Engine: submit jobs, wait for outcomes, stop, close
handle          Handle: one job, to be awaited or iterated over
waiters         the futures of callers who wait for jobs
event_stream    a bounded stream of events that drops the oldest
outcome_stream  jobs in, outcomes out, with backpressure
event_loop      run an async function on the fastest event loop that is installed
"""
