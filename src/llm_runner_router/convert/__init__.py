"""Model files to other model files: plans (pure), converters, quantisation.

Runs in the command line or in a process of its own, never in the gateway: it uses numpy and much
memory bandwidth.
"""
