"""Who sent a datagram: addresses as the kernel wrote them to origins, in a table of a fixed size.

Promises: a sender is looked up by its bytes, without making text of them again; one that may not send is remembered,
too; at most `most` are: the least recently seen makes room and is counted, so that a burst from forged addresses costs
time in proportion and no more memory. Refuses: believing an address (it can be forged).
"""

from collections import OrderedDict

from ndagent.core.datagrams import address_of
from ndagent.core.metrics import Metrics
from ndagent.core.networks import AllowedNetworks
from ndagent.core.tls_refusal import Refused
from ndagent.wire.record import Origin


class Senders:
    """The senders of one input, which `name` is."""

    def __init__(self, name: str, *, allow: AllowedNetworks, most: int, metrics: Metrics) -> None:
        self._name = name
        self._allow = allow
        self._most = most
        self._origins: OrderedDict[bytes, Origin | None] = OrderedDict()  # the least recently seen first
        self._forgotten = 0
        self._known_gauge = metrics.senders.labels(name)
        self._forgotten_total = metrics.senders_forgotten.labels(name)

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._origins)

    def origin(self, sender: bytes) -> Origin | None:
        """Of a Datagram's `sender`; None for one that is not allowed."""
        try:
            self._origins.move_to_end(sender)
        except KeyError:
            self._origins[sender] = self._look_at(sender)
            if len(self._origins) > self._most:
                self._origins.popitem(last=False)
                self._forgotten += 1
        return self._origins[sender]

    def report(self) -> None:
        """Bring the metrics up to date; now and then, as a metric costs more than a look-up."""
        self._known_gauge.set(len(self._origins))
        forgotten, self._forgotten = self._forgotten, 0
        self._forgotten_total.inc(forgotten)

    def _look_at(self, sender: bytes) -> Origin | None:
        address, port = address_of(sender)
        try:
            self._allow.check_address(address)
        except Refused:
            return None
        return Origin(self._name, address, port)
