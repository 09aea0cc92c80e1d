"""No two listeners of one configuration on one address: it is found before anything is opened.

Promises: the fault names the key and who else has the address. Without it the second listener over TCP would fail when
it is too late to say where it stands; two over UDP would share what comes (SO_REUSEPORT), each getting half of it.
Refuses: knowing what other programs listen on (listening.py tries).
"""

from collections.abc import Iterable, Iterator, Mapping

from ndagent.core.settings import Listen, SettingError, Settings, listen_addresses, transport_of

Listener = tuple[tuple[str | int, ...], str, Listen]
"""The key that says where to listen, "tcp" or "udp", and the address."""


def input_listeners(inputs: Mapping[str, Settings]) -> Iterator[Listener]:
    """Those of the section `inputs`."""
    for name, settings in inputs.items():
        for key, listen in listen_addresses(settings):
            yield ("inputs", name, *key), transport_of(settings), listen


def check_listens_once(listeners: Iterable[Listener]) -> None:
    """Raise SettingError for the first that wants an address that another one has."""
    seen: list[tuple[str, Listen, str]] = []
    for path, transport, listen in listeners:
        for its, other, owner in seen:
            if its == transport and _overlap(listen, other):
                raise SettingError(path, f"{listen} is taken by {owner} ({other}); choose another port")
        seen.append((transport, listen, ".".join(map(str, path[:2]))))


def _overlap(one: Listen, other: Listen) -> bool:
    """Whether they meet: the same address, or one of them is all of that family."""
    if one.port != other.port or not one.port or (":" in one.host) != (":" in other.host):
        return False
    return one.host == other.host or not {"0.0.0.0", "::"}.isdisjoint({one.host, other.host})
