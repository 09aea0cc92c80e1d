"""Who may use a listener, by address: all that is known of a peer that shows no certificate.

Promises: an empty list restricts nothing; what is not allowed is refused with a reason. Refuses: believing an address
over UDP more than that: it can be forged, and a list then only makes forging harder.
"""

import ipaddress
from collections.abc import Sequence
from typing import Annotated

from pydantic import BeforeValidator, Field, PlainSerializer

from ndagent.core.settings import Settings
from ndagent.core.tls_refusal import Refused

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def parse_network(value: object) -> Network:
    """A network or a single address; raises ValueError that shows a good example."""
    if isinstance(value, ipaddress.IPv4Network | ipaddress.IPv6Network):
        return value
    try:
        return ipaddress.ip_network(str(value))
    except ValueError as error:
        raise ValueError(f"{value!r} is not a network such as 10.2.0.0/16 or 2001:db8::/32: {error}") from None


Networks = tuple[Annotated[Network, BeforeValidator(parse_network), PlainSerializer(str)], ...]
"""A list of networks in the configuration."""


class AllowNetworks(Settings):
    """Who may send; there is no certificate to ask for."""

    networks: Networks = Field(
        default=(), description="Addresses that may send, as networks or single addresses; [] means all."
    )


class AllowedNetworks:
    """A list of networks, ready to be asked."""

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = tuple(networks)

    def check_address(self, address: str) -> None:
        """Raise Refused unless the address lies in a listed network."""
        if self._networks:
            parsed = ipaddress.ip_address(address.partition("%")[0])
            if not any(parsed in network for network in self._networks):
                raise Refused("network_not_allowed", address)
