"""What outputs that speak HTTP say and hear, and what an answer means where the output knows no better.

Promises: `judge` is the one place where a status becomes Unavailable or Rejected: what says nothing about the events
(401, 403, 404, 410, 415 …) waits for a person, a redirect too (it is never followed), 408, 425, 429 and 5xx wait for
better times, 413 is bisected, any other 4xx rejects. Refuses: I/O.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Protocol

from ndagent.core.interfaces import MAX_RESPONSE_CHARACTERS, Rejected, Unavailable

_REASON_BYTES = 300
_A_PERSON_MUST_ACT = {
    401: "check its credentials",
    402: "its quota or contract has run out",
    403: "check what its credentials allow",
    404: "check its URL",
    405: "check its URL",
    406: "check its URL, and `headers`",
    407: "the proxy wants credentials",
    410: "it is there no longer: check its URL",
    411: "is there a proxy in between that knows no Content-Length?",
    414: "the URL is too long for it",
    415: "it does not take this encoding or compression: change them",
    417: "check its URL, and `headers`",
    421: "check its URL",
    426: "it wants another protocol: check its URL",
    428: "check its URL, and `headers`",
    431: "too much in `headers`, or in the credentials",
    451: "ask whoever runs it",
}
"""None of these is about the events: the next ones would fare as they did, so all of them wait."""

_LATER = (408, 423, 425, 429)
TOO_LARGE = 413
_LONGEST_WAIT_DIGITS = 9

Sign = Callable[[str, bytes], Mapping[str, str]]
"""Header fields for a request that goes to this URL with this body; called in a thread where the body is large."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request to whichever endpoint is chosen. `path` (with its query) follows what the endpoint's URL has.

    `idempotent` says that the far side takes it twice as once: only then it may be hedged. `sign` is for signatures
    that cover the endpoint (AWS Signature 4); it is asked anew for each endpoint and each try. `endpoint` is the only
    one to ask, as Answer.endpoint named it: for what only the one knows that answered before.
    """

    method: str
    path: str
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    idempotent: bool = False
    sign: Sign | None = None
    endpoint: str | None = None


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
        where = answer.headers.get("location", "").partition("?")[0][:_REASON_BYTES]  # a query may hold our key
        raise Unavailable(
            f"{answer.endpoint} answered {status} and points to {where!r}, which is not followed; write that URL into "
            f"the output's url if it is right"
        )
    if status in _LATER or status < 200 or status >= 500:
        raise Unavailable(answer.reason, retry_after(answer))
    text = answer.body[:MAX_RESPONSE_CHARACTERS].decode("utf-8", "replace")
    raise Rejected(answer.reason, response=f"{status}\n{text}")


def retry_after(answer: Answer, *, now: datetime | None = None) -> float | None:
    """Seconds from Retry-After (RFC 9110 §10.2.3); None where there is none.

    A date is counted from the answer's own Date, so that no two clocks are compared; from `now` where there is none.
    """
    text = answer.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal():
        return float(text[:_LONGEST_WAIT_DIGITS])  # more digits than that are mistaken whatever they say
    until = _date(text)
    since = _date(answer.headers.get("date", "")) or now
    return max(0.0, (until - since).total_seconds()) if until is not None and since is not None else None


def _date(text: str) -> datetime | None:
    try:
        found = parsedate_to_datetime(text) if text else None
    except (ValueError, OverflowError):
        return None
    return found if found is None or found.tzinfo is not None else found.replace(tzinfo=UTC)
