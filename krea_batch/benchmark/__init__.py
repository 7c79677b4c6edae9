"""`krea-batch bench`: measures how much of a rate limit the engine uses, and compares it with ordinary scripts.

cases             what is measured
runner            starts a simulator and a worker for each case
worker            the process that measures one case
engine_run        runs a case with the engine
baseline_scripts  runs a case with an ordinary script
recorder          what a worker records
measurements      the numbers made from a record
output            the table and bench.json
plots             the plots

Each case has a worker process of its own, so that CPU time and memory are those of the case alone.
"""
