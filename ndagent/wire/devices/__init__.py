"""What devices mean: one file for each family turns the parsed message into more ECS fields.

Promises: a family only ever adds to an event; a message that no family knows, or that is not as its family writes, is
the event that it would be without this package, byte for byte; what a family makes depends on the message alone.
Refuses: I/O, clocks, state between messages (a burst told in two messages stays two events), and changing `message`.

A family's module has `FAMILY`: its name, the signatures by which its messages are told (signatures.py), and `read`,
which gives ECS fields by their dotted names (fields.py) or None. A new family is such a file, its vectors in
tests/wire/vectors/devices/, and its line in FAMILIES.

What costs what: telling that a message matches nothing takes the codec some 10 ns. One that matches is parsed from its
line and written anew (enrich.py), 12 to 50 µs in Python: that is why signatures say more than a program's name where a
program also says what its family does not read.
"""

from importlib import import_module

from ndagent.wire.devices.fields import Family

FAMILIES = (
    "cisco_asa",
    "cisco_ios",
    "panos",
    "fortigate",
    "junos",
    "checkpoint",
    "f5",
    "netfilter",
    "sshd",
    "sudo",
    "cef",
    "leef",
    "key_value",
)
"""Names, which are module names, keys of the configuration and names of vector files. Signatures are tried in this
order, the first that fits is the family: the special before the general."""


def load_family(name: str) -> Family:
    """The family of that name, imported only when it is wanted; raises ValueError for one that is none."""
    if name not in FAMILIES:
        raise ValueError(f"{name!r} is no family of devices; there are {', '.join(FAMILIES)}")
    found: Family = import_module(f"{__name__}.{name}").FAMILY
    return found
