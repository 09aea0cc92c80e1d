"""What an agent reports of itself every few seconds: `nd/v1/agents/<id>/status`, `POST /agents/v1/status`.

Promises: every field checked and bounded (see fields.py), `to_json` and `from_json` exact inverses. What it says is an
agent's word: it is shown and compared, and it decides nothing about another agent.
Refuses: who the agent is; the certificate says that.

Counters (`received`, `shed` …) begin with the agent's process; `run_id` names the process.
"""

import re
from dataclasses import asdict, dataclass
from typing import Literal, get_args

import orjson

from ndagent.wire.fields import BadDocument, Fields

MAX_STATUS_BYTES = 64 * 1024
MAX_SPOOLS, MAX_INPUTS, MAX_SHED = 16, 64, 64
_NAME, _MESSAGE = 255, 500
_HEX = re.compile(r"[0-9a-f]+")
_SPOOL_ID = re.compile(r"[0-9a-z]{16}")  # core/spool/segment.py: 80 bits in base 36
RUN_ID_CHARACTERS = 16  # 64 random bits, lower-case hex
_BUNDLE_CHARACTERS = 64

InputState = Literal["running", "waiting", "failed"]
PolicyResult = Literal["applied", "refused", "rolled_back"]


def is_run_id(text: str) -> bool:
    """Whether this can name a process of an agent."""
    return len(text) == RUN_ID_CHARACTERS and _HEX.fullmatch(text) is not None


def is_spool_id(text: str) -> bool:
    """Whether this can be a spool's id as it stands in event ids."""
    return _SPOOL_ID.fullmatch(text) is not None


@dataclass(frozen=True, slots=True)
class SpoolStatus:
    """One spool of the agent: what waits in it. `oldest_at_ns` is when its oldest waiting event came; 0 = none."""

    stream: str
    spool_id: str
    pending_events: int
    bytes: int
    max_bytes: int
    oldest_at_ns: int = 0

    @classmethod
    def read(cls, fields: Fields) -> "SpoolStatus":
        """Raises BadDocument."""
        spool_id = fields.text("spool_id", at_most=32)
        if not is_spool_id(spool_id):
            raise BadDocument("spools: spool_id must be 16 lower-case letters and digits")
        return cls(
            stream=fields.text("stream", at_most=64),
            spool_id=spool_id,
            pending_events=fields.integer("pending_events"),
            bytes=fields.integer("bytes"),
            max_bytes=fields.integer("max_bytes"),
            oldest_at_ns=fields.integer("oldest_at_ns", default=0),
        )


@dataclass(frozen=True, slots=True)
class InputStatus:
    """One input of the agent; `message` says what is wrong with one that is not running."""

    name: str
    type: str
    state: InputState
    received: int = 0
    dropped: int = 0
    message: str = ""

    @classmethod
    def read(cls, fields: Fields) -> "InputStatus":
        """Raises BadDocument."""
        state = fields.text("state", at_most=16)
        if state not in get_args(InputState):
            raise BadDocument(f"inputs: state must be one of {', '.join(get_args(InputState))}")
        return cls(
            name=fields.text("name", at_most=64),
            type=fields.text("type", at_most=64),
            state=state,  # type: ignore[arg-type]  # checked above
            received=fields.integer("received", default=0),
            dropped=fields.integer("dropped", default=0),
            message=fields.text("message", at_most=_MESSAGE, default=""),
        )


@dataclass(frozen=True, slots=True)
class Shed:
    """Events that the agent gave up because its spool was full: how many of which input, and between which times."""

    input: str
    events: int
    since_ns: int
    until_ns: int

    @classmethod
    def read(cls, fields: Fields) -> "Shed":
        """Raises BadDocument."""
        since, until = fields.integer("since_ns"), fields.integer("until_ns")
        if until < since:
            raise BadDocument("shed: until_ns lies before since_ns")
        return cls(fields.text("input", at_most=64), fields.integer("events"), since, until)


@dataclass(frozen=True, slots=True)
class PolicyStatus:
    """The policy in force, and what became of the one that came last."""

    version: int
    result: PolicyResult
    message: str = ""

    @classmethod
    def read(cls, fields: Fields) -> "PolicyStatus":
        """Raises BadDocument."""
        result = fields.text("result", at_most=16)
        if result not in get_args(PolicyResult):
            raise BadDocument(f"policy.result: must be one of {', '.join(get_args(PolicyResult))}")
        message = fields.text("message", at_most=_MESSAGE, default="")
        return cls(fields.integer("version"), result, message)  # type: ignore[arg-type]  # checked above


@dataclass(frozen=True, slots=True)
class AgentStatus:
    """One report.

    `sent_at_ns` is Unix time by the agent's clock. `trust_bundle` is `enrolment.bundle_fingerprint` of the CA bundle
    that the agent checks its collector with; `certificate_not_after` is Unix seconds, 0 where it does not know;
    `endpoint` is where it sends to now ("mqtt://host:8883"), empty while nothing answers.
    """

    run_id: str
    sent_at_ns: int
    version: str
    os: str
    hostname: str
    spools: tuple[SpoolStatus, ...] = ()
    inputs: tuple[InputStatus, ...] = ()
    shed: tuple[Shed, ...] = ()
    policy: PolicyStatus | None = None
    trust_bundle: str = ""
    certificate_not_after: int = 0
    endpoint: str = ""

    def to_json(self) -> bytes:
        """The report's body."""
        return orjson.dumps({key: value or None for key, value in asdict(self).items()})

    @classmethod
    def from_json(cls, data: bytes) -> "AgentStatus":
        """Inverse of `to_json`; raises BadDocument."""
        fields = Fields.parse(data, max_bytes=MAX_STATUS_BYTES)
        run_id = fields.text("run_id", at_most=RUN_ID_CHARACTERS)
        if not is_run_id(run_id):
            raise BadDocument(f"run_id: must be {RUN_ID_CHARACTERS} lower-case hex digits")
        bundle = fields.text("trust_bundle", at_most=_BUNDLE_CHARACTERS, default="")
        if bundle and (len(bundle) != _BUNDLE_CHARACTERS or not _HEX.fullmatch(bundle)):
            raise BadDocument(f"trust_bundle: must be {_BUNDLE_CHARACTERS} lower-case hex digits")
        return cls(
            run_id=run_id,
            sent_at_ns=fields.integer("sent_at_ns", default=0),
            version=fields.text("version", at_most=64, default=""),
            os=fields.text("os", at_most=_NAME, default=""),
            hostname=fields.text("hostname", at_most=_NAME, default=""),
            spools=tuple(map(SpoolStatus.read, fields.each("spools", at_most=MAX_SPOOLS))),
            inputs=tuple(map(InputStatus.read, fields.each("inputs", at_most=MAX_INPUTS))),
            shed=tuple(map(Shed.read, fields.each("shed", at_most=MAX_SHED))),
            policy=PolicyStatus.read(fields.nested("policy")) if fields.has("policy") else None,
            trust_bundle=bundle,
            certificate_not_after=fields.integer("certificate_not_after", default=0),
            endpoint=fields.text("endpoint", at_most=300, default=""),
        )
