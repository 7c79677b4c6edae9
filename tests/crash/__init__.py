"""Real processes that really die, and what is on the disk afterwards.

make crashtest KILLS=200        as many random kills as one likes
"""
