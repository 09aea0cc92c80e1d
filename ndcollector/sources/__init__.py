"""The sources view: who sends, how often by their own rhythm, how well, and who has gone quiet.

    rhythm.py    what pause is usual for a source at an hour of the week; pure
    table.py     the sources themselves, bounded: who must go when newcomers come
    facts.py     what decoded events say of their senders: format, clock, parse failures, channels of agents
    listening.py since when anybody listened at all
    silence.py   when a source counts as quiet, looked at only when it may be due
    alerts.py    the two events, gone quiet and back, and their way into the spool: exactly once, whatever crashes
    sources.py   all of it put together for the daemon
    unsaved.py   what is to be written, and when
    rows.py      a source as a row of ledger.db
    routes.py    the admin routes
    command.py   `ndcollector sources`

Names are the ledger's (ndcollector/ledger/origins.py), and the table stands in the ledger's file. See docs/sources.md.
"""
