"""Targets made of targets: which one answers. One class, one file; see each for when to use it."""
