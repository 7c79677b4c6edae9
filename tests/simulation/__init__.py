"""The real stages, rules and ledger in a world of chance, where a seed decides all: latencies, faults, deaths.

world    a gateway and its CDN that do what the seed says, and cry out when the engine breaks a law under their eyes
mortal   a loop that dies at any step, and a disk that forgets what was not synced
plays    one seed: runs that end, stop, are killed and go on, and the books that must agree after each of them

    make simtest SEEDS=10000                       as many as one likes, on all cores
    python -m tests.simulation --seed 4711         one of them again, step by step the same
"""
