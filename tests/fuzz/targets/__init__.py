"""The parsers under fuzz, one a file; see `tests.fuzz.target`."""
