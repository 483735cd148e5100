"""Child sides of the engines: each module's `serve(order, tell)` runs in a process of its own.

Nothing here may be imported by the gateway: these modules import inference libraries.
"""
