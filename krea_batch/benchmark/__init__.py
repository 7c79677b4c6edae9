"""Rate limits come in; what the engine (or a usual script) makes of each goes out: figures, a table, plots.

    case ─► sweep ─► a simulator, in a process of its own
              └────► worker, in a process of its own ─► record ─► figures ─► table · bench.json · plots

Newcomers: a worker is a fresh process for each case, so that processor time and memory are that case's alone.
"""
