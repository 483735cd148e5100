"""Wire dialects of upstreams, one file each, pure: bytes to `Delta`s, `Request`s to bytes."""
