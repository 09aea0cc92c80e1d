"""Asking a device: requests over UDP with a time limit and repeats, and walks of table columns that end.

Promises: `get` and `walk` return what the device said, or raise Silent (nothing came in time, with all repeats) or
Denied; a walk never asks more than its number of rows allows and never goes backwards, whatever the device answers.
Refuses: knowing what the numbers mean (snmp_health.py).
"""

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from ndagent.core.snmp_talk import Denied, Talk, Verdict
from ndagent.wire.snmp import ber
from ndagent.wire.snmp.messages import Kind, Pdu, Varbind, make_pdu

_NULL = bytes((ber.NULL, 0))
_EXCEPTIONS = frozenset({0x80, 0x81, 0x82})  # noSuchObject, noSuchInstance, endOfMibView (RFC 3416 §3)
_UNREAD_DATAGRAMS = 32
_CORRECTIONS = 3
"""Times that a device may tell us how to ask rightly (its engine, its time) before that counts as no answer."""
_LONGEST_VALUE_BYTES = 1024
"""Of a table's cell: four times a DisplayString's most (RFC 2579). Thousands of longer ones are an attack."""
_REPETITIONS = 10
"""Rows asked for at a time: some 2 KB of answer. Devices send as many as they like to."""


class Silent(Exception):
    """Nothing that is an answer came in time."""


class _Ear(asyncio.DatagramProtocol):
    """Keeps what came; what is too much to keep is not an answer either."""

    def __init__(self) -> None:
        self.heard: asyncio.Queue[bytes | OSError] = asyncio.Queue(_UNREAD_DATAGRAMS)

    def datagram_received(self, data: bytes, addr: object) -> None:  # noqa: ARG002 - the kernel lets in one only
        if not self.heard.full():
            self.heard.put_nowait(data)

    def error_received(self, exc: Exception) -> None:
        if isinstance(exc, OSError) and not self.heard.full():
            self.heard.put_nowait(exc)


class Device:
    """One device, over all its rounds. `new_id` makes request ids."""

    def __init__(
        self, address: tuple[str, int], talk: Talk, *, timeout_seconds: float, retries: int,
        new_id: Callable[[], int] = lambda: random.SystemRandom().randrange(1, 2**31),
    ) -> None:  # fmt: skip
        self._address = address
        self._talk = talk
        self._timeout_seconds = timeout_seconds
        self._retries = retries
        self._new_id = new_id

    @asynccontextmanager
    async def connected(self) -> AsyncIterator["Asking"]:
        """A socket for one round, which hears this address only; raises OSError (no such name, no way there)."""
        loop = asyncio.get_running_loop()
        try:
            transport, ear = await loop.create_datagram_endpoint(_Ear, remote_addr=self._address)
        except UnicodeError as error:  # a label of no length, or of more than 63 bytes
            raise OSError(f"{self._address[0]!r} is no name that can be looked up") from error
        try:
            yield Asking(transport, ear, self._talk, self._timeout_seconds, self._retries, self._new_id)
        finally:
            transport.close()


class Asking:
    """Requests of one round; made by Device."""

    def __init__(
        self, transport: asyncio.DatagramTransport, ear: _Ear, talk: Talk, timeout_seconds: float, retries: int,
        new_id: Callable[[], int],
    ) -> None:  # fmt: skip
        self._transport = transport
        self._ear = ear
        self._talk = talk
        self._timeout_seconds = timeout_seconds
        self._retries = retries
        self._new_id = new_id

    async def get(self, names: Sequence[str]) -> dict[str, Varbind]:
        """What the device has of these, by name."""
        pdu = await self._request(Kind.GET, names)
        return {one.oid: one for one in pdu.varbinds if one.oid in names and one.tag not in _EXCEPTIONS}

    async def walk(self, columns: Sequence[str], *, rows: int) -> dict[str, dict[str, Varbind]]:
        """Columns of a table, at most so many rows of each: column → what stands behind it → value."""
        found: dict[str, dict[str, Varbind]] = {column: {} for column in columns}
        at = dict.fromkeys(columns, "")  # how far each has come; a column that is done is not in here
        for _ in range(rows + len(columns)):  # a device may answer with a row at a time
            if not at or not rows:
                break
            names = [f"{column}{'.' if last else ''}{last}" for column, last in at.items()]
            pdu = await self._request(Kind.GET_BULK, names, third=_REPETITIONS)
            if not _take_rows(pdu, list(at), at, found, rows):
                break
        return found

    async def _request(self, kind: Kind, names: Sequence[str], *, third: int = 0) -> Pdu:
        values = [(name, _NULL) for name in names]
        for _ in range(1 + self._retries):
            request_id = self._new_id()
            pdu = make_pdu(kind, request_id, values, third=third)
            answer = await self._try(request_id, pdu)
            if answer is None:
                continue
            if answer.error_status:
                raise Denied(f"it answers with error {answer.error_status} (RFC 3416 §3)")
            return answer
        raise Silent

    async def _try(self, request_id: int, pdu: bytes) -> Pdu | None:
        """The answer to this one, None where none came; a device that corrects us is asked again at once."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                for _ in range(1 + _CORRECTIONS):
                    self._transport.sendto(self._talk.ask(request_id, pdu))
                    answer = await self._hear(request_id)
                    if answer is not None:
                        return answer
        except TimeoutError:
            pass
        return None

    async def _hear(self, request_id: int) -> Pdu | None:
        """The answer; None to ask again."""
        while True:
            heard = await self._ear.heard.get()
            if isinstance(heard, OSError):  # nobody listens there (ICMP): a repeat after the pause, not at once
                continue
            found = self._talk.hear(request_id, heard)
            if found is Verdict.AGAIN:
                return None
            if isinstance(found, Pdu):
                return found


def _take_rows(
    pdu: Pdu, order: list[str], at: dict[str, str], found: dict[str, dict[str, Varbind]], rows: int
) -> bool:
    """What a GetBulk brought: varbinds go round the columns (RFC 3416 §4.2.3). False where it brought nothing new."""
    is_new = False
    for number, one in enumerate(pdu.varbinds):
        column = order[number % len(order)]
        if column not in at:
            continue
        behind = one.oid[len(column) + 1 :]
        is_next = one.oid.startswith(f"{column}.") and _arcs(behind) > _arcs(at[column])
        if one.tag in _EXCEPTIONS or not is_next or len(found[column]) >= rows:
            del at[column]
            continue
        if len(one.contents) <= _LONGEST_VALUE_BYTES:
            found[column][behind] = one
        at[column] = behind
        is_new = True
    return is_new


def _arcs(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split("."))) if text else ()
