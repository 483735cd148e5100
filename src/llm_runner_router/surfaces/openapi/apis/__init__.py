"""One file per API that is spoken here, each with a value `API`: what its routes take and give.

Whoever adds a route adds an `Operation` to one of these files, or a file with an `Api`; nothing
else names them. `tests/surfaces/test_openapi.py` fails for a route without one, and the other way
round.
"""
