"""Names to addresses and services: what agent and collector ask DNS, and what they do when it does not answer.

Promises: an answer of the name servers comes with the time for which it may be kept, between SHORTEST_SECONDS and
LONGEST_SECONDS whatever it says; `LastKnown` keeps what a name stood for while it stands for nothing, and says so once
in a while. Refuses: choosing among what was found, and deciding when to ask again.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Hashable
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from ndagent.core.log import Throttle

if TYPE_CHECKING:
    from dns.resolver import Answer

SHORTEST_SECONDS, LONGEST_SECONDS = 5.0, 3600.0
"""A TTL of 0 must not make every second a storm of questions, one of a week must not outlast a move."""

SYSTEM_SECONDS = 30.0
"""For what the system's own look-up says (/etc/hosts, mDNS), which comes without a TTL."""

_SAY_EVERY_SECONDS = 600.0

T = TypeVar("T")


class Srv(NamedTuple):
    """One SRV record (RFC 2782)."""

    priority: int
    weight: int
    host: str
    port: int


class Found(NamedTuple, Generic[T]):
    """What a name stands for, and for how many seconds that may be believed.

    `unheard`: IP versions of whose addresses the name servers said nothing, not even that there are none.
    """

    values: list[T]
    ttl_seconds: float
    unheard: tuple[int, ...] = ()


class NoRecordsError(OSError):
    """The name servers say that there is no such record."""


Resolve = Callable[[str, int], Awaitable[list[str]]]
"""The addresses of a host; raises OSError."""

Services = Callable[[str], Awaitable[list[Srv]]]
"""The SRV records of a name; raises OSError."""


class LastKnown(Generic[T]):
    """Look-ups that fall back on what the same key was last found to be. Never raises for what DNS says."""

    def __init__(self, log: logging.Logger, *, remedy: str, clock: Callable[[], float]) -> None:
        self._log = log
        self._remedy = remedy
        self._throttle = Throttle(_SAY_EVERY_SECONDS, clock=clock)
        self._last: dict[Hashable, list[T]] = {}

    def last(self, key: Hashable) -> list[T]:
        """What was found last for this key."""
        return self._last.get(key, [])

    async def find(self, key: Hashable, name: str, look_up: Callable[[], Awaitable[list[T]]]) -> list[T]:
        """What `look_up` finds, else what it found last for this key; `name` is for the log."""
        try:
            found = await look_up()
            if not found:
                raise OSError("DNS knows no address of it")  # noqa: TRY301 - an empty answer is as bad as none
            self._last[key] = found
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that DNS cannot have
            if self._throttle.allow(name) is not None:
                self._log.warning("%s cannot be resolved (%s); %s", name, error, self._remedy)
        return self.last(key)


async def resolve_host(host: str, port: int) -> list[str]:
    """The host's addresses as the system finds them, each once."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


async def find_services(name: str) -> list[Srv]:
    """SRV records by dnspython, which is only loaded where somebody configured one."""
    return (await services(name)).values


async def services(name: str) -> Found[Srv]:
    """As find_services, with the records' TTL."""
    answer = await _ask(name, "SRV", "DNS SRV records need")
    found = [Srv(one.priority, one.weight, str(one.target).rstrip("."), one.port) for one in answer]
    # a target of "." says that there is no such service (RFC 2782)
    return Found([one for one in found if one.host], _bounded(answer))


async def addresses(host: str) -> Found[str]:
    """A and AAAA records with their shorter TTL; the system's own look-up where the name servers know neither.

    Where one of the two questions gets no answer, that is told, and asked again soon.
    """
    outcomes = await asyncio.gather(
        *(_ask(host, kind, "discovery by DNS needs") for kind in ("A", "AAAA")), return_exceptions=True
    )
    for one in outcomes:
        if isinstance(one, BaseException) and not isinstance(one, OSError):
            raise one
    answers = [one for one in outcomes if not isinstance(one, BaseException)]
    if not answers:
        return Found(await resolve_host(host, 0), SYSTEM_SECONDS)
    found = [str(record.address) for answer in answers for record in answer]
    unheard = tuple(
        version
        for version, one in zip((4, 6), outcomes, strict=True)
        if isinstance(one, OSError) and not isinstance(one, NoRecordsError)
    )
    ttl_seconds = min([*map(_bounded, answers), *([SYSTEM_SECONDS] if unheard else [])])
    return Found(list(dict.fromkeys(found)), ttl_seconds, unheard)


async def _ask(name: str, kind: str, need: str) -> "Answer":
    try:
        import dns.asyncresolver
        import dns.exception
        import dns.resolver
    except ImportError as error:
        raise OSError(f"{need} dnspython: pip install 'neurodefender-collector[srv]'") from error
    try:
        # search: a bare name means what it means to everything else on this machine
        return await dns.asyncresolver.resolve(name, kind, search=kind != "SRV")
    except (dns.resolver.NXDOMAIN, dns.resolver.NoAnswer) as error:
        raise NoRecordsError(str(error)) from error
    except dns.exception.DNSException as error:
        dns.asyncresolver.reset_default_resolver()  # resolv.conf may have changed since it was read
        raise OSError(str(error)) from error


def _bounded(answer: "Answer") -> float:
    ttl = answer.rrset.ttl if answer.rrset is not None else 0
    return min(max(float(ttl), SHORTEST_SECONDS), LONGEST_SECONDS)
