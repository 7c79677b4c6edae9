"""`krea-batch bench`: measures how much of a rate limit the engine uses, and compares it with ordinary scripts.

Of the engine, at several limits:

cases             what is measured
runner            starts a simulator and a worker for each case
worker            the process that measures one case
engine_run        runs a case with the engine
recorder          what a worker records
measurements      the numbers made from a record

The engine and the scripts of others, with faults and kills:

comparison         what is compared, and what is counted
comparison_runner  starts and kills the programs
process_tree       the processor time of a program and its end
scripts            the programs that the engine is compared with

And of both:

simulator_ledger  what the simulator has counted
output            the tables and bench.json
plots             the plots

Each case has a worker process of its own, so that CPU time and memory are those of the case alone.
"""
