"""Wire formats: bytes to `Request`s, `Delta`s to bytes. Only `http.py` touches ASGI."""
