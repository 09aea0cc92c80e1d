"""NetFlow v5, v9 (RFC 3954) and IPFIX (RFC 7011): datagrams of exporters in, ECS flow events out.

    packets.py    a datagram taken apart: header, data sets, templates
    template.py   the shape of records, and records as columns;  elements.py, values.py: IANA's names and types
    templates.py  all exporters' templates, bounded;  held.py: data that came before its template;  state.py: on disk
    lines.py      columns as lines of JSON;  flow.py: which element is which ECS field;  sampling.py, community_id.py
    sequence.py   what was numbered and never came
    decoder.py    all of it together

Promises and limits stand in each. Nothing here does I/O, knows the time, or raises for what an exporter sends.
"""
