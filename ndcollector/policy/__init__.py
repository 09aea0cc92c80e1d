"""Policy: what agents should read and how they should ship it, written in layers, signed, handed out.

    policies/*.yaml ──layers──► merge ──► `ndcollector policy apply` ──► store ──► desk ──► mqtt, https ──► agents

Promises: what agents get is what was applied, never what somebody is just editing; a version is never used twice, not
even after the collector's state was lost; who set a value can be said for each one, down to the line.
Refuses: transports (inputs/mqtt and inputs/https ask the desk), and deciding what a host may be made to read: that is
the host's own `policy_allow`, which no policy can change.

The files here: merge.py (pure), layers.py (the directory), applying.py (each agent's policy, and what would change),
store.py (versions and agents, SQLite), keys.py, desk.py (the daemon's side), command.py.
"""
