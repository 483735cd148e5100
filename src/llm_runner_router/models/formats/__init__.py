"""File formats, one module each: `describe(path)` reads the facts without running anything."""
