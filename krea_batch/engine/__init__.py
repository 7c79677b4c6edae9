"""The library's public API.

engine          Engine: submit jobs, wait for outcomes, stop and close
handle          Handle: one job, to await or to iterate over
waiters         the futures of callers who wait for jobs
event_stream    a bounded stream of events that drops the oldest
outcome_stream  the outcomes of a stream of jobs, with backpressure
event_loop      run an async function on the fastest event loop that is installed
"""
