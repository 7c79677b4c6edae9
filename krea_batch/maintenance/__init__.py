"""A run that no process is working on.

locked_run  exclusive access to its ledger
resolve     decisions about ambiguous jobs
retry       submits unsuccessful jobs again
verify      compares images with the ledger, and repairs them
export      its images in the formats of other tools
"""
