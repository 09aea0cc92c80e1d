"""Real counterparts for the tests: Debian's own rsyslog and syslog-ng, unpacked beside the project, never installed."""
