"""Candidates for the HTTP hot path: the smallest proxy on each server and client.

Nothing of the product is in them; `bench/http_stack.py` compares them.
"""
