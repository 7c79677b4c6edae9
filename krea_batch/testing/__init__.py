"""A test kit: replacements for the real gateway and for the clock.

Tests of an application use `scripted_gateway` and `virtual_time`; each of them starts with an example.

simulator          the gateway and its CDN as HTTP servers: `krea-batch simulate`, `--simulate`
scripted_gateway   a gateway in the same process that gives the responses a test has scripted
virtual_time       an event loop whose clock jumps to the next timer instead of waiting
"""
