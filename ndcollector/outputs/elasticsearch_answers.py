"""What Elasticsearch and OpenSearch answer to a bulk request, and what of it each event means for us. Pure.

    item   201             taken
           409             taken before: `create` found our `_id` (event.id), so an answer was lost
           429, 5xx        later: only these events are sent again
           400             refused: a dead letter with the reason, unless the target is at fault (_NOT_THE_EVENTS_FAULT)
           404, 403, …     a person must act: there is no such index, it is read-only, we may not write

Promises: an answer that has not one item for each event, or is no bulk answer at all, counts as none: a proxy that says
200 to everything must not make us forget events. An answer without errors is not parsed: its items are counted.
Refuses: requests.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from ndagent.core.interfaces import Rejected, Unavailable
from ndcollector.traffic.request import Answer, judge, retry_after

FILTER = "errors,items.*.status,items.*.error"
"""For the query's filter_path: a tenth of the whole answer, and all of it that we read."""

_CLEAN = b'{"errors":false,'
_CREATED = b'"status":201}'
_REASON_CHARACTERS = 500

_NOT_THE_EVENTS_FAULT = (
    ("invalid_index_name_exception", ""),
    ("index_closed_exception", ""),
    ("validation_exception", ""),  # of an index that would be made, such as the cluster's limit of shards
    ("illegal_argument_exception", "Validation Failed: 1: this action would add"),  # the same from some services
    ("illegal_argument_exception", "pipeline with id ["),
    ("illegal_argument_exception", "only write ops with an op_type of create"),
    ("illegal_argument_exception", "no write index is defined"),
    ("illegal_argument_exception", "index ["),  # … is not a data stream, needs routing and such
    ("illegal_argument_exception", "data stream"),
    ("illegal_argument_exception", "unknown query parameter"),
    ("illegal_argument_exception", "request [/"),  # … contains unrecognized parameter
)
"""Types of errors with status 400, and how their reason begins, that every event would get: a person must act."""


@dataclass(slots=True)
class Outcome:
    """Positions of events by what became of them; what is in none was taken."""

    refused: dict[int, str] = field(default_factory=dict)
    again: list[int] = field(default_factory=list)
    blocked: list[int] = field(default_factory=list)
    reason: str = ""  # of the first of `blocked`, else of `again`

    @property
    def is_clean(self) -> bool:
        """Whether all were taken."""
        return not (self.refused or self.again or self.blocked)


def read_bulk(answer: Answer, count: int) -> Outcome:
    """What became of the `count` events of a request; raises Unavailable or Rejected where it failed as a whole."""
    if answer.status != 200:
        raise _of_the_request(answer)
    if answer.body.startswith(_CLEAN) and answer.body.count(_CREATED) == count:
        return Outcome()
    try:
        found = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        found = None
    items = found.get("items") if isinstance(found, dict) else None
    if not isinstance(items, list) or len(items) != count or not isinstance(found.get("errors"), bool):
        got = f"{len(items)} results for {count} events" if isinstance(items, list) else repr(answer.body[:100])
        raise Unavailable(f"{answer.endpoint} answered 200 with {got}, not with a bulk answer; is it Elasticsearch?")
    outcome = Outcome()
    for position, result in enumerate(_results(items, answer)):
        _sort(outcome, position, result)
    return outcome


def _results(items: list[Any], answer: Answer) -> Iterator[Mapping[str, Any]]:
    for item in items:
        result = next(iter(item.values()), None) if isinstance(item, dict) else None
        if not isinstance(result, dict) or not isinstance(result.get("status"), int):
            raise Unavailable(f"{answer.endpoint} answered 200 with a result that has no status: {item!r:.100}")
        yield result


def _sort(outcome: Outcome, position: int, result: Mapping[str, Any]) -> None:
    status = result["status"]
    if 200 <= status < 300 or status == 409:
        return
    error = result.get("error")
    words = f"{status}: {in_words(error)}"
    if status == 429 or status >= 500:
        outcome.again.append(position)
        outcome.reason = outcome.reason or words
    elif status in (400, 413) and not is_the_targets_fault(error):
        outcome.refused[position] = words
    else:
        if not outcome.blocked:
            outcome.reason = words
        outcome.blocked.append(position)


def _of_the_request(answer: Answer) -> Exception:
    """A request that failed whole. Of 400 and 413 the events may be guilty, of anything else only a person."""
    try:
        found = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        found = {}
    error = found.get("error") if isinstance(found, dict) else None
    said = f"{answer.endpoint} answered {answer.status}: {in_words(error)}" if error else answer.reason
    if answer.status == 400 and error and not is_the_targets_fault(error):
        return Rejected(said, response=answer.body.decode("utf-8", "replace"))
    try:
        judge(answer)
    except Unavailable as verdict:
        return verdict
    except Rejected:
        pass
    return Unavailable(f"{said}; a person must act: check url, target and pipeline", retry_after(answer))


def is_the_targets_fault(error: object) -> bool:
    """Whether an error of status 400 would meet any event."""
    if not isinstance(error, dict):
        return False
    kind, reason = str(error.get("type")), str(error.get("reason"))
    return any(kind == one and reason.startswith(words) for one, words in _NOT_THE_EVENTS_FAULT)


def in_words(error: object) -> str:
    """Type and reason of an error with that of its cause."""
    if not isinstance(error, dict):
        return _shortened(str(error))
    cause = error.get("caused_by")
    behind = f" ({cause.get('reason')})" if isinstance(cause, dict) and cause.get("reason") else ""
    return _shortened(f"{error.get('type')}: {error.get('reason')}{behind}")


def _shortened(text: str) -> str:
    """Without its middle, which is where the event's own text stands."""
    half = _REASON_CHARACTERS // 2
    return text if len(text) <= 2 * half else f"{text[:half]} … {text[-half:]}"
