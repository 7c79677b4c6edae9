"""Stand-ins for the real service, for tests and for trying things out.

simulator          the gateway and its CDN as a server: `krea-batch simulate`, `--simulate`
scripted_gateway   a gateway that answers what a test wrote down
virtual_time       an event loop on which hours pass in milliseconds
"""
