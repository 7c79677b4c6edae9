"""Facts come in, decisions go out: no I/O, no clock, no randomness of their own.

verdicts    what an answer of the gateway means
lifecycle   which state may follow which, and what a verdict does to a job
pace        when the next POST may go
schedule    when a job is looked at again
"""
