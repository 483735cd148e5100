"""The description of this server for machines and people: `/openapi.json` and `/docs`.

Knows: how routes are described. Does not know: how they answer. It is imported by the first request
for one of the two, so that a start pays nothing for it.
"""
