"""What the collector knows of its agents: inventory, enrolment, certificates, clones.

Inputs hold a `Fleet` (fleet.py) and ask it about every agent; `Enrolment` (enrolment.py) answers enrol and renew. Both
know no protocol: an input gives them documents and addresses, and puts their answers and refusals into its own words.
`ndcollector agents …` (command.py) works on the same SQLite file beside the running daemon.

    fleet ── memory: every agent, its spools, runs and keys ◄── loaded at start, and again when a command changed it
      │
      └── one thread ── inventory.sqlite: enrolments and spool ids durable before the answer, "last seen" in batches
"""
