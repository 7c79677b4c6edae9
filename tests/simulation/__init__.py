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
process            event loops that stall, or crash at a chosen step
simulated_disk     a disk that loses what was not synced
ledger_faults      a ledger that is locked, full, or fails with an unclear commit
ledger_reader      reads what is committed
listeners          a listener that raises or blocks
weighted_choice    choose from a table
planted_faults     deliberate bugs that the simulation must find

Several workers on one run directory at the same time, which crash, stall or lose their ledger:

workers_scenario       one seed: workers that join, meet faults and end
worker_plan            what the seed decides about one worker
worker_invariants      what must hold besides `invariants`
workers_gateway        the gateway, which also checks that a POST is sent by the run that has the job
worker_loop            one event loop for all workers, each of which can crash or stall
worker_faults          what a killed worker leaves, and ledgers that are cut off
client_process         what the gateway knows of one process
planted_worker_faults  deliberate bugs of workers

    make simtest SEEDS=10000                           run this many seeds of each kind on all cores
    python -m tests.simulation --seed 4711             run one seed again, with exactly the same steps
    python -m tests.simulation --workers --seed 4711   the same with several workers
"""
