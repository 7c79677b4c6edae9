"""The library's public API.

engine           Engine: submit jobs, wait for outcomes, stop and close
handle           Handle: one job, to await or to iterate over
synchronous      run jobs to their end from a script or notebook, without asyncio
open_run         an open run directory: its lock, ledger and results, and the pipeline that works on it
outcome_stream   the outcomes of a stream of jobs, with backpressure
child_process    start this package in another process
signal_receiver  receive the signals that stop a command
event_loop       run an async function on the fastest event loop that is installed
"""
