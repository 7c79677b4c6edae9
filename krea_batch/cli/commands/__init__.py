"""One module per command: bench, completion, dashboard, demo, doctor, explain, export, init, inspect, plan, recover,
report, resolve, retry, run, schema, simulate, status, validate, verify, view, watch, worker.
"""
