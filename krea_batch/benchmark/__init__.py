"""`krea-batch bench`: throughput against rate limits, of the engine or of ordinary scripts.

cases             what is measured
runner            starts a simulator and a worker for each case
worker            the process that measures one case
engine_run        the engine as the subject
baseline_scripts  ordinary scripts as the subject
recorder          what a worker records
measurements      the numbers made from a record
output            the table and bench.json
plots             the plots

A worker is a fresh process for each case, so that processor time and memory are that case's alone.
"""
