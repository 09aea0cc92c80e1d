"""SNMP as it travels: BER, messages of v1, v2c and v3, names of objects, and notifications as ECS lines.

Why not pysnmp: it answers an inform before the application hears of it (rfc3413/ntfrcv.py), which breaks the law that
what is acknowledged is durable; pyasn1 takes 0.36 ms for a trap of five varbinds (this: 0.03 with its event) and half a
second for a datagram of ten thousand; and its engine costs 20 MB. It serves the tests, as the other side.
"""
