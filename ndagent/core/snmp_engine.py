"""Our own SNMP engine's name and age, and the clocks of the engines that send to us: what makes a replay known.

Promises (RFC 3414 §2.2, §2.3, §3.2 7):
  * our engine id stays, and our boots are one more after every start, on disk before the first message is read;
  * a file that is damaged or cannot be written costs a new engine id, which is as safe (no key of before fits it);
  * an engine's clock only goes forward, over our restarts too: after one, a message is as late as what was last heard;
  * at most `engines` clocks are kept, the least recently heard out first. Only authentic messages set one.
Refuses: cryptography (snmp_usm.py).
"""

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from ndagent.core.spool.files import Files, replace_whole
from ndagent.core.waiting import to_its_end

WINDOW_SECONDS = 150  # RFC 3414 §2.2.3
MOST_BOOTS = 2**31 - 1
_VERSION = 1
_MAX_FILE_BYTES = 16 * 2**20  # 2**17 engines, the most there may be, take up to 95 bytes each
_ID_HEAD = bytes.fromhex("8000000005")  # RFC 3411 §5: no enterprise of ours; octets of our choice follow
_ID_BYTES = 12


class _Clock(NamedTuple):
    boots: int
    latest: int
    heard_at: float


class Engine:
    """See the module; `monotonic` in seconds, `random_bytes` as os.urandom."""

    def __init__(
        self, path: Path, *, files: Files, monotonic: Callable[[], float], random_bytes: Callable[[int], bytes],
        engines: int, log: logging.Logger,
    ) -> None:  # fmt: skip
        self._path = path
        self._files = files
        self._monotonic = monotonic
        self._random_bytes = random_bytes
        self._most = engines
        self._log = log
        self._began = monotonic()
        self._clocks: OrderedDict[bytes, _Clock] = OrderedDict()
        self._changed = False
        self._saves = True
        self.engine_id = b""
        self.boots = 0
        self.evicted = 0

    def __len__(self) -> int:
        return len(self._clocks)

    @property
    def time(self) -> int:
        """Our snmpEngineTime."""
        return int(self._monotonic() - self._began)

    async def open(self) -> None:
        """Read what was, and be one boot further; never raises for what is on disk."""
        try:
            self._restore(await asyncio.to_thread(self._read))
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            self._log.warning("%s cannot be used: %s; a new SNMP engine id is made", self._path, error)
        if not self.engine_id or self.boots >= MOST_BOOTS:
            self._begin_anew()
        self.boots += 1
        self._began = self._monotonic()
        self._changed = True
        await self.save()
        if self._changed:  # a restart would count the same boot again: then it must be another engine
            self._saves = False
            self._begin_anew()
            self.boots = 1

    async def save(self) -> None:
        """Write it, if anything changed; a disk that refuses is said."""
        if not self._changed or not self._saves:
            return
        self._changed = False
        clocks = {engine_id.hex(): [clock.boots, clock.latest] for engine_id, clock in self._clocks.items()}
        data = {"version": _VERSION, "engine_id": self.engine_id.hex(), "boots": self.boots, "clocks": clocks}
        try:
            await to_its_end(asyncio.to_thread(self._write, orjson.dumps(data)))
        except OSError as error:
            self._changed = True
            self._log.warning("%s cannot be saved: %s; replays of SNMPv3 may pass after a restart", self._path, error)

    # ---- time windows

    def is_ours_now(self, boots: int, time: int) -> bool:
        """Whether a message to us says our time (RFC 3414 §3.2 7 a)."""
        return boots == self.boots != MOST_BOOTS and abs(time - self.time) <= WINDOW_SECONDS

    def is_theirs_now(self, engine_id: bytes, boots: int, time: int) -> bool:
        """Whether an authentic message of another engine is not from its past (§3.2 7 b); sets its clock."""
        now = self._monotonic()
        known = self._clocks.get(engine_id)
        if boots >= MOST_BOOTS or boots < 0 or time < 0:
            return False
        if known is None or (boots, time) > (known.boots, known.latest):
            self._clocks[engine_id] = _Clock(boots, time, now)
            self._changed = True
        elif boots < known.boots or time < known.latest + (now - known.heard_at) - WINDOW_SECONDS:
            return False
        self._clocks.move_to_end(engine_id)
        if len(self._clocks) > self._most:
            self._clocks.popitem(last=False)
            self.evicted += 1
        return True

    # ---- the file

    def _begin_anew(self) -> None:
        self.engine_id = _ID_HEAD + self._random_bytes(_ID_BYTES)
        self.boots = 0

    def _restore(self, data: bytes) -> None:
        if not data:
            return
        found: dict[str, Any] = orjson.loads(data)
        if found["version"] != _VERSION:
            raise ValueError(f"version {found['version']!r}, this program reads {_VERSION}")
        engine_id, boots = bytes.fromhex(found["engine_id"]), int(found["boots"])
        now = self._monotonic()
        clocks = {bytes.fromhex(key): _Clock(int(a), int(b), now) for key, (a, b) in found["clocks"].items()}
        if not engine_id.startswith(_ID_HEAD) or not 0 <= boots <= MOST_BOOTS:
            raise ValueError("its engine id or boots are none")
        self.engine_id, self.boots = engine_id, boots
        self._clocks = OrderedDict(list(clocks.items())[-self._most :])

    def _read(self) -> bytes:
        try:
            fd = self._files.open_read(self._path)
        except FileNotFoundError:
            return b""
        try:
            size = self._files.size(self._path)
            if size > _MAX_FILE_BYTES:
                raise ValueError(f"{size} bytes; at most {_MAX_FILE_BYTES} are read")
            return self._files.pread(fd, size, 0)
        finally:
            self._files.close(fd)

    def _write(self, data: bytes) -> None:
        self._files.make_directory(self._path.parent)
        replace_whole(self._files, self._path, data)
