"""Work on a run that no process is running. Nothing in this package submits a job.

locked_run  exclusive access to the ledger of a run
resolve     decisions about ambiguous jobs
recover     rebuilds a ledger from results.jsonl
retry       makes unsuccessful jobs pending again
verify      compares images with the ledger, and repairs them
export      writes images in the formats of other tools; also works during a run
"""
