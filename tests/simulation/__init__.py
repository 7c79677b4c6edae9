"""Randomised simulation: the real engine against a random gateway, with crashes and power loss. A seed decides all.

random_gateway   a gateway and CDN with random latencies and faults, which checks the requests of the engine
crash_loop       an event loop that crashes at a chosen step, and a disk that loses what was not synced
scenario         one seed: runs that end, are stopped or crash, and the invariants that are checked after each run

    make simtest SEEDS=10000                       run this many seeds on all cores
    python -m tests.simulation --seed 4711         run one seed again, with exactly the same steps
"""
