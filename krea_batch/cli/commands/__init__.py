"""One module per command: bench, completion, dashboard, doctor, export, init, inspect, plan, report, resolve, retry,
run, schema, simulate, status, validate, verify, view, watch.
"""
