"""Live looks at events: at an input as they came, on a stream as they were decoded, at an output as it took them.

    spool's tip ──read──► decode ─┐
                                  ├─► where, sample ─► NDJSON ─► /v1/tap on the admin socket ─► ndcollector tap
    output took a batch ──offer──►┘

    sources.py  where the events come from      look.py   which are shown, and how
    hub.py      how many taps, and when they work      route.py, command.py   the daemon's end and the operator's

Promises:
  * a tap never holds anything up: at inputs and streams it reads what the spool keeps in memory anyway, at an output it
    is handed batches that the output already took; what it cannot keep up with it leaves out, and says how much;
  * all taps together work for at most a tenth of the time, in slices of about two milliseconds, one at a time;
  * while nobody taps nothing is done at inputs, and at an output one attribute is looked at for each batch;
  * bounded: `admin.max_taps`, and for each tap at an output `admin.tap_buffer_bytes` (or one batch, if that is larger);
  * a tap ends when its reader goes, when its limit is reached, or when the collector stops.
Refuses: delivery. A tap may miss events; an output never does.
"""
