"""Looking after caches: list, merge, copy, drop views, delete what nothing refers to, statistics."""
