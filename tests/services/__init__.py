"""Real counterparts for the tests: Debian's own programs, unpacked beside the project, never installed."""
