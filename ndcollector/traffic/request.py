"""What outputs that speak HTTP say and hear, and what an answer means where the output knows no better.

Promises: `judge` is the one place where a status becomes Unavailable or Rejected: 401, 403 and 404 wait for a person,
408, 425, 429 and 5xx wait for better times, 413 is bisected, any other 4xx rejects.
Refuses: I/O.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ndagent.core.interfaces import MAX_RESPONSE_CHARACTERS, Rejected, Unavailable

_REASON_BYTES = 300
_A_PERSON_MUST_ACT = {401: "check its credentials", 403: "check what its credentials allow", 404: "check its URL",
                      407: "the proxy wants credentials", 405: "check its URL", 421: "check its URL"}  # fmt: skip
_LATER = (408, 423, 425, 429)
TOO_LARGE = 413


@dataclass(frozen=True, slots=True)
class Request:
    """A request to whichever endpoint is chosen. `path` (with its query) follows what the endpoint's URL has."""

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer, whatever its status; header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    endpoint: str

    @property
    def reason(self) -> str:
        """In words for the log: who answered what."""
        text = self.body[:_REASON_BYTES].decode("utf-8", "replace").strip()
        said = f": {text!r}" if text else ""
        return f"{self.endpoint} answered {self.status}{said}"


class Exchange(Protocol):
    """How an output reaches its far side; see pool.py."""

    async def __call__(self, request: Request) -> Answer:
        """Any whole answer but those that say that the endpoint is unwell (429, 5xx): they are Unavailable."""

    async def aclose(self) -> None:
        """Close the connections."""


def judge(answer: Answer) -> None:
    """Return for 2xx; raise Unavailable or Rejected for the rest."""
    status = answer.status
    if 200 <= status < 300:
        return
    if status in _A_PERSON_MUST_ACT:
        raise Unavailable(f"{answer.reason}; {_A_PERSON_MUST_ACT[status]}")
    if 300 <= status < 400:
        where = answer.headers.get("location", "")
        raise Unavailable(f"{answer.endpoint} answered {status} and points to {where!r}; write that URL if it is right")
    if status in _LATER or status < 200 or status >= 500:
        raise Unavailable(answer.reason, retry_after(answer))
    text = answer.body[:MAX_RESPONSE_CHARACTERS].decode("utf-8", "replace")
    raise Rejected(answer.reason, response=f"{status}\n{text}")


def retry_after(answer: Answer) -> float | None:
    """Seconds from Retry-After (RFC 9110 §10.2.3); None where there is none, or a date (which needs a clock)."""
    text = answer.headers.get("retry-after", "").strip()
    return float(text) if text.isdecimal() and len(text) < 10 else None
