"""Crash tests: real processes, killed, and what is on the disk afterwards.

make crashtest KILLS=200        with this many random kills
"""
