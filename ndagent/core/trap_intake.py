"""SNMP traps and informs over UDP into batches of ECS events; the plugs of agent and collector are made of this.

    DatagramIntake ──datagrams──► Gate (community; user, digest, time) ──PDU──► line ──► Batcher ──accept──► spool
                                      └─ Reports, at once        Responses to informs ◄── once accept() returned ┘

Promises:
  * everything that DatagramIntake promises: who may send, one place of loss, bounded memory;
  * an inform is answered when its event is durable, never before; one that could not be answered is repeated by its
    sender, and told apart by `snmp.request_id`;
  * what is refused (community, user, engine, digest, time window, level) or malformed is counted by its reason, and
    said once a minute;
  * our SNMPv3 engine and the clocks of theirs survive a restart (state_dir/snmp_trap/).
Refuses: keeping datagrams (what they say may be encrypted with a key that changes), and answering GET and SET.
"""

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Self

from pydantic import Field, SecretStr, model_validator

from ndagent.core.datagram_intake import DatagramConfig, DatagramIntake, DatagramLimits
from ndagent.core.datagrams import answer_address
from ndagent.core.interfaces import Accept
from ndagent.core.log import Throttle
from ndagent.core.metrics import Metrics
from ndagent.core.networks import AllowedNetworks, AllowNetworks
from ndagent.core.settings import ByteSize, Listen, ListenAddress, SettingError
from ndagent.core.snmp_engine import Engine
from ndagent.core.snmp_security import REASONS, REPORTS, Gate, Opened, Refusal
from ndagent.core.snmp_users import EngineId, UserConfig
from ndagent.core.spool.files import Files, OsFiles
from ndagent.wire.framing import Chunk
from ndagent.wire.record import Batch, Flags, Framing, Origin
from ndagent.wire.snmp.ber import Malformed
from ndagent.wire.snmp.messages import V1, Kind, open_pdu
from ndagent.wire.snmp.notification import Limits, Sender, is_notification, line

DATAGRAMS_A_READ = 128
"""Some 6 ms of work: the loop has other things to do."""
CHUNK_BYTES = 128 * 1024
SAVE_EVERY_SECONDS = 60.0
_SAY_EVERY_SECONDS = 60.0


class TrapUser(UserConfig):
    """Who may send traps and informs of SNMPv3."""

    engine_ids: tuple[EngineId, ...] = Field(
        default=(), description="Engines from which the user may send traps; [] means any that has the right keys."
    )


class TrapLimits(DatagramLimits):
    """What senders may take of this machine."""

    varbinds: int = Field(
        default=256, ge=2, le=16384, description="Varbinds kept of a trap; the others are counted in its event."
    )
    value_bytes: ByteSize = Field(
        default=8192, ge=64, le=65536, description="Bytes kept of one value; a longer one is cut and tagged."
    )
    engines: int = Field(
        default=4096, ge=1, le=2**17,
        description="SNMPv3 engines whose clocks are remembered; the one heard of longest ago goes first.",
    )  # fmt: skip


class TrapConfig(DatagramConfig):
    """Settings of an snmp_trap input."""

    listen: tuple[ListenAddress, ...] = Field(
        default=(Listen("0.0.0.0", 162),), min_length=1,
        description="Addresses to receive at. An inform is answered from the one it came to: on a machine with "
        "several, list each instead of 0.0.0.0.",
    )  # fmt: skip
    allow: AllowNetworks = Field(default=AllowNetworks(), description="Who may send.")
    communities: tuple[SecretStr, ...] = Field(
        default=(), description="Communities taken with v1 and v2c, as ${file:…}; [] takes neither version.",
        examples=[["public"]],
    )
    users: tuple[TrapUser, ...] = Field(default=(), description="Users taken with v3; [] does not take v3.")
    limits: TrapLimits = Field(default=TrapLimits(), description="What senders may take of this machine.")

    @model_validator(mode="after")
    def _takes_somebody(self) -> Self:
        if not self.communities and not self.users:
            raise SettingError(("communities",), "is missing, and so is `users`: nobody could send; give one of them")
        names = [user.name for user in self.users]
        for index, name in enumerate(names):
            if name in names[:index]:
                raise SettingError(("users", index, "name"), f"{name!r} is listed twice")
        for index, community in enumerate(self.communities):
            if not community.get_secret_value():
                raise SettingError(("communities", index), "is empty; write the community that devices send")
        return self


_Address = tuple[str, int] | tuple[str, int, int, int]


class _Answer(NamedTuple):
    """A Response to be made and sent once its event is durable."""

    sock: socket.socket
    address: _Address
    make: Callable[[], bytes]
    kept_bytes: int


class _Lines(bytes):
    """A chunk's lines, and the informs among them that are owed an answer: they travel together to `accept`."""

    answers: tuple[_Answer, ...] = ()


class TrapInput:
    """An Input; see the module. `constants` are members of every event, each with a comma behind it."""

    def __init__(
        self,
        name: str,
        config: TrapConfig,
        *,
        state_dir: Path,
        metrics: Metrics,
        clock: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
        random_bytes: Callable[[int], bytes] = os.urandom,
        constants: bytes = b"",
        files: Files | None = None,
    ) -> None:
        self._name = name
        self._metrics = metrics
        self._clock = clock
        self._constants = constants
        self._most_varbinds = config.limits.varbinds
        self._limits = Limits(value_bytes=config.limits.value_bytes)
        self._log = logging.getLogger(name)
        self._throttle = Throttle(_SAY_EVERY_SECONDS, clock=monotonic)
        self._engine = Engine(
            state_dir / "snmp_trap" / f"{name}.json", files=files or OsFiles(), monotonic=monotonic,
            random_bytes=random_bytes, engines=config.limits.engines, log=self._log,
        )  # fmt: skip
        self._gate = Gate(
            communities=[one.get_secret_value().encode() for one in config.communities],
            users={one.name.encode(): one.user(engine_ids=frozenset(one.engine_ids)) for one in config.users},
            engine=self._engine,
            random_bytes=random_bytes,
        )
        self._opened = False
        self._evicted = 0
        self._refused: dict[str, tuple[int, str]] = {}  # reason → how many, and what the last one was
        self._declare()
        self._intake = DatagramIntake(
            name,
            config,
            allow=AllowedNetworks(config.allow.networks),
            metrics=metrics,
            clock=clock,
            monotonic=monotonic,
            translate=self._translate,
            beside_bytes=_kept_bytes,
            format="ecs",
            datagrams_a_read=DATAGRAMS_A_READ,
        )

    @property
    def addresses(self) -> list[Listen]:
        """Where it receives, with the ports that the kernel chose."""
        return self._intake.addresses

    async def start(self) -> None:
        """Open the sockets and be one boot further; raises OSError that names the address."""
        await self._intake.start()
        if not self._opened:
            self._opened = True
            await self._engine.open()

    async def run(self, accept: Accept) -> None:
        """Receive until cancelled; then as DatagramIntake does, and save the engines' clocks."""

        async def acknowledging(batch: Batch) -> None:
            await accept(batch)
            self._answer(batch)

        await self.start()
        minding = asyncio.create_task(self._mind(), name=f"{self._name}: engines")
        try:
            await self._intake.run(acknowledging)
        finally:
            minding.cancel()
            with suppress(asyncio.CancelledError):
                await minding
            self._count_engines()
            await self._engine.save()

    async def _mind(self) -> None:
        while True:
            await asyncio.sleep(SAVE_EVERY_SECONDS)
            self._count_engines()
            await self._engine.save()

    # ---- datagrams

    def _translate(self, origin: Origin, is_cut: bool, datagrams: list[bytes]) -> Iterator[Chunk]:
        moment = datetime.fromtimestamp(self._clock(), UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        lines: list[bytes] = []
        answers: list[_Answer] = []
        size = 0
        for data in datagrams:
            made = self._event(origin, data, moment=moment, is_cut=is_cut)
            if made is None:
                continue
            event, opened = made
            lines.append(event)
            size += len(event)
            if opened is not None and self._intake.receiving is not None:
                address = answer_address(self._intake.answer_to)
                answers.append(_Answer(self._intake.receiving, address, opened.respond, len(opened.pdu)))
            if size >= CHUNK_BYTES:
                self._count_refused()
                yield _chunk(lines, answers)
                lines, answers, size = [], [], 0
        self._count_refused()
        if lines:
            yield _chunk(lines, answers)

    def _event(
        self, origin: Origin, data: bytes, *, moment: str, is_cut: bool
    ) -> tuple[bytes, Opened | None] | None:
        """The line, and what is owed an answer; None where nothing is taken, which is counted."""
        try:
            if is_cut:
                raise Malformed("longer than max_message_bytes")  # noqa: TRY301 - one place says and counts it
            opened = self._gate.open(data)
            pdu = open_pdu(opened.pdu, most=self._most_varbinds)
            if not is_notification(pdu) or (pdu.kind is Kind.TRAP_V1) != (opened.version == V1):
                self._refuse("not_a_trap", f"{pdu.kind.name}: only traps and informs are taken here", origin)
                return None
            sender = Sender(origin.address, origin.port, opened.facts)
            event, lacks = line(pdu, sender, moment=moment, limits=self._limits, constants=self._constants)
        except Malformed as error:
            self._refuse("malformed", f"no SNMP message that can be read: {error}", origin)
        except Refusal as refusal:
            self._report(refusal, origin)
        except Exception:  # noqa: BLE001 - a bug in the decoder must not cost the datagrams behind; it is logged
            self._intake.misread(origin, data)
        else:
            if lacks:
                self._metrics.truncated.labels(self._name).inc()
            return event, opened if pdu.kind is Kind.INFORM else None
        return None

    # ---- answers

    def _answer(self, batch: Batch) -> None:
        """Every inform of a batch that is durable now."""
        for lines in batch.payload:
            for answer in lines.answers if isinstance(lines, _Lines) else ():
                sent = self._send(answer.sock, answer.address, answer.make())
                self._metrics.informs.labels(self._name, "answered" if sent else "unanswered").inc()

    def _send(self, sock: socket.socket, address: _Address, data: bytes) -> bool:
        """Whether it went out. A full queue or a socket that a stop has closed is for the sender's next try."""
        try:
            sock.sendto(data, address)
        except OSError as error:
            if self._throttle.allow("send") is not None:
                self._log.warning("cannot answer %s: %s; it will ask again", address[0], error.strerror)
            return False
        return True

    def _report(self, refusal: Refusal, origin: Origin) -> None:
        if refusal.report is not None and self._intake.receiving is not None:
            self._metrics.snmp_reports.labels(self._name, refusal.reason).inc()
            self._send(self._intake.receiving, answer_address(self._intake.answer_to), refusal.report)
        if not refusal.is_handshake:
            self._refuse(refusal.reason, str(refusal), origin)

    # ---- counting

    def _declare(self) -> None:
        metrics, name = self._metrics, self._name
        for reason in (*REASONS, "malformed", "not_a_trap"):
            metrics.dropped.labels(name, reason)  # there from the start: a rate needs the zero
        for result in ("answered", "unanswered"):
            metrics.informs.labels(name, result)
        for reason in REPORTS:
            metrics.snmp_reports.labels(name, reason)
        metrics.snmp_engines_evicted.labels(name)

    def _refuse(self, reason: str, what: str, origin: Origin) -> None:
        count, _ = self._refused.get(reason, (0, ""))
        self._refused[reason] = (count + 1, f"{reason.replace('_', ' ')}, from {origin.address}: {what}")

    def _count_refused(self) -> None:
        refused, self._refused = self._refused, {}
        for reason, (count, last) in refused.items():
            self._metrics.received.labels(self._name).inc(count)  # received is durable or refused
            self._metrics.count_drop(input=self._name, reason=reason, events=count)
            if self._throttle.allow(reason) is not None:
                self._log.warning("%d refused: %s", count, last)

    def _count_engines(self) -> None:
        self._metrics.snmp_engines.labels(self._name).set(len(self._engine))
        self._metrics.snmp_engines_evicted.labels(self._name).inc(self._engine.evicted - self._evicted)
        self._evicted = self._engine.evicted


def _kept_bytes(chunk: Chunk) -> int:
    """Of informs until they are answered: what their events left out is in there, too."""
    payload = chunk.payload
    return sum(answer.kept_bytes for answer in payload.answers) if isinstance(payload, _Lines) else 0


def _chunk(lines: list[bytes], answers: list[_Answer]) -> Chunk:
    payload = _Lines(b"".join(lines))
    payload.answers = tuple(answers)
    return Chunk(Framing.LF, Flags.OWN, len(lines), payload)
