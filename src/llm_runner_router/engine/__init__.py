"""Local inference: which models are loaded, in which processes, with how many threads."""
