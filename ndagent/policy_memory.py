"""What an agent remembers of its policies: `<state_dir>/policy/state.json` and one file per bundle that is in use.

Promises: bundles are written once, whole and synced, under a name made of their digest; state.json is replaced
atomically and is the only thing that says which of them counts, so that a crash leaves the old state or the new one.
Files that no state names are removed. A damaged state is set aside, told as an error and begun anew: then the version
floor is lost, and what remains against replayed policies is their expiry.
Refuses: rules (policy.py) and keys' meaning.
"""

import hashlib
import json
import logging
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ndagent.core import system_files
from ndagent.core.spool.errors import UnknownFormat
from ndagent.wire.policy import BadBundle, Bundle, Floor, open_bundle

log = logging.getLogger(__name__)

STATE, SUFFIX = "state.json", ".bundle"
_FORMAT = 1


@dataclass(frozen=True, slots=True)
class Memory:
    """Everything that must survive a restart.

    enrolled_key: what the collector told last; key, next_key: what bundles may be signed with now (raw, in hex).
    active, good: names of bundles; equal unless `active` is on trial. Empty: no policy.
    starts: how often the agent was started again since the trial began, clean stops aside. is_confirming: the old one
    reached a collector, and the new one is being tried again. rejected: a version that was rolled back, 0 for none.
    """

    agent_id: str
    enrolled_key: str
    key: str
    next_key: str = ""
    floor_version: int = 0
    floor_digest: str = ""
    active: str = ""
    good: str = ""
    starts: int = 0
    is_confirming: bool = False
    rejected: int = 0
    result: str = ""
    message: str = ""
    since: int = 0

    @property
    def floor(self) -> Floor | None:
        """Below which nothing is taken."""
        return Floor(self.floor_version, self.floor_digest) if self.floor_version else None

    @property
    def is_on_trial(self) -> bool:
        """Whether the active policy still has to prove itself."""
        return self.active != self.good


class PolicyFiles:
    """The directory; made on the first write."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def load(self) -> Memory | None:
        """The state, None if there is none. Raises UnknownFormat: what a later version kept must not be forgotten."""
        path = self._directory / STATE
        try:
            found = json.loads(path.read_bytes())
            if type(found.get("format")) is int and found["format"] > _FORMAT:
                raise UnknownFormat(path, what="policy", found=found["format"], known=_FORMAT)
            return _memory(found)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            aside = path.with_suffix(".damaged")
            log.error("%s is damaged (%s): kept as %s, policies begin anew", path, error, aside.name)
            with suppress(OSError):  # a disk that takes nothing is no reason not to start
                path.replace(aside)
            return None

    def save(self, memory: Memory) -> None:
        """Make this the state, then remove bundles that it does not name. Raises OSError."""
        self._write(STATE, json.dumps({"format": _FORMAT, **asdict(memory)}).encode())
        for path in self._directory.glob(f"*{SUFFIX}"):
            if path.name not in (memory.active, memory.good):
                path.unlink(missing_ok=True)

    def put(self, data: bytes, *, version: int) -> str:
        """Keep a bundle; returns its name. Raises OSError."""
        name = f"{version}-{_digest(data)}{SUFFIX}"
        self._write(name, data)
        return name

    def get(self, name: str) -> Bundle | None:
        """The bundle, None where it is not there or not what was kept. Its signature was judged when it came."""
        try:
            data = (self._directory / name).read_bytes()
            return open_bundle(data, verify=lambda _signature, _message: _digest(data) in name)
        except (OSError, BadBundle) as error:
            log.error("%s cannot be used, the collector will send it again: %s", self._directory / name, error)
            return None

    def _write(self, name: str, content: bytes) -> None:
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self._directory / f".new-{name}"
        temporary.unlink(missing_ok=True)
        descriptor = system_files.create(temporary, 0o600)
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(descriptor)
        system_files.replace(temporary, self._directory / name)
        system_files.sync_directory(self._directory)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _memory(found: dict[str, Any]) -> Memory:
    if found.pop("format") != _FORMAT:
        raise ValueError("unknown format")
    memory = Memory(**found)
    for name, kind in Memory.__annotations__.items():
        if type(getattr(memory, name)) is not kind:
            raise TypeError(f"{name} has another type")
    return memory
