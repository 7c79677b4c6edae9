"""Randomised simulation: the real engine against a random gateway, with crashes and power loss. A seed decides all.

scenario           one seed: runs that end, are stopped or crash, and decisions of the user between them
run_plan           what the seed decides about one run: its options, its end, and the faults that it meets
invariants         what must hold after each run
random_gateway     the gateway: accepts, charges and refuses POSTs, and checks the requests of the engine
random_statuses    its answers to polls, and how its jobs end
random_callbacks   its callbacks
random_cdn         its images
answers            the bytes of answers, and damaged ones that still have the request_id
outages            times in which every request fails in the same way
network            sessions and connections below the product's HTTP client, also with one reply too many
process            event loops that stand still, or crash at a chosen step
simulated_disk     a disk that loses what was not synced
ledger_faults      a ledger that is locked, full, or fails with an unclear commit
ledger_reader      reads what is committed
listeners          a listener that raises or blocks
weighted_choice    choose from a table
planted_faults     deliberate bugs that the simulation must find

    make simtest SEEDS=10000                       run this many seeds on all cores
    python -m tests.simulation --seed 4711         run one seed again, with exactly the same steps
"""
