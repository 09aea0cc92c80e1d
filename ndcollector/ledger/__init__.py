"""The ledger per origin: which device's events were received, delivered to whom, evicted, dead-lettered.

    books.py     the sums in memory, and the algebra that keeps them equal to the cursors' accounts
    origins.py   devices' names and their numbers, bounded
    store.py     ledger.db: the SQLite file
    file.py      the same in a thread of its own, set aside where it is damaged
    fresh.py     what a spool has just committed: the part on the way of every batch
    counting.py  whose events stand in a range of a spool, from the records' heads alone
    opening.py   what a start makes of the file and the spools: what the last process did not get to write
    ledger.py    all of it put together, for the daemon (an ndagent.core Journal)
    look.py      the same for `ndcollector ledger` where no daemon runs
    report.py    rows and proofs as plain data
    command.py   the command

How it works, its format and what it costs: docs/ledger.md.
"""
