"""Model files: a reference becomes a file on disk and its facts. Imports no inference library."""
