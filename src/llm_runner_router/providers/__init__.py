"""Remote targets: one HTTP client, one file per wire dialect, one row of data per host."""
