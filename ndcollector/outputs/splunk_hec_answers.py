"""What Splunk's HTTP Event Collector answers, and what each of its codes means for us. Pure.

    0, 24, 25              taken; 24 and 25 say that a queue is filling
    5, 6, 12, 13, 15       an event in the request is bad: no data, no JSON, no or an empty `event`, unfit `fields`
    7                      the token may not write to the index: a person must act, since every event would be refused
    1, 2, 3, 4, 16, 21, 22 the token is disabled, missing, unknown: a person must act
    10, 11, 14             channel or acknowledgement are not what the token is set to: a person must act
    8, 9, 18 to 20, 23, 26, 27   busy, unwell, shutting down: later

Promises: only code 0, 24 or 25 in a JSON answer of status 200 means taken: a proxy's login page does not. Only codes
that tell of an event, or a body that is too large, make a dead letter; whatever else is said waits.
Refuses: requests. `invalid-event-number` is handed on as a hint: for some codes Splunk counts from 1, for some from 0.
"""

from typing import Any

import orjson

from ndagent.core.interfaces import Rejected, Unavailable
from ndcollector.outputs.parts import Spoiled, TooLarge
from ndcollector.traffic.request import TOO_LARGE, Answer, judge, retry_after

_TAKEN = (0, 24, 25)
_BAD_EVENT = (5, 6, 12, 13, 15)
ACK_IS_DISABLED = 14
_REMEDIES = {
    1: "the token is disabled: enable it in Splunk, or set token",
    2: "check token",
    3: "check token: it is the bare value, without the word Splunk",
    4: "the token is unknown there: check token and url",
    7: "add the index to the token's allowed indexes in Splunk, or correct index and indexes",
    10: "the token wants indexer acknowledgement: set ack: true",
    11: "the token wants indexer acknowledgement: set ack: true",
    ACK_IS_DISABLED: "the token has no indexer acknowledgement: enable it in Splunk, or set ack: false",
    16: "check token",
    21: "the token is unknown there: check token and url",
    22: "the token is disabled: enable it in Splunk, or set token",
}
"""Code: what a person must do."""


def read_taken(answer: Answer) -> int | None:
    """The ackId of a request that was taken, None where it has none; raises Unavailable, Spoiled or TooLarge."""
    if answer.status == TOO_LARGE:
        raise TooLarge(answer.reason, str(answer.status))
    found = body_of(answer)
    code = found.get("code")
    if answer.status == 200 and type(code) is int and code in _TAKEN:  # false is no 0
        identity = found.get("ackId")
        return identity if type(identity) is int else None
    if code in _BAD_EVENT:
        number = found.get("invalid-event-number")
        said = f"{answer.endpoint} answered code {code}: {found.get('text')}"
        raise Spoiled(said, number if isinstance(number, int) else None, answer.body.decode("utf-8", "replace"))
    raise refusal(answer)


def refusal(answer: Answer) -> Unavailable:
    """Why the events wait."""
    found = body_of(answer)
    code = found.get("code")
    if isinstance(code, int) and code in _REMEDIES:
        return Unavailable(f"{answer.endpoint} answered code {code}: {found.get('text')}; {_REMEDIES[code]}")
    if answer.status == 200:
        return Unavailable(f"{answer.reason}, which is not Splunk's word that it took the events; check url")
    try:
        judge(answer)
    except Unavailable as verdict:
        return verdict
    except Rejected:
        pass
    return Unavailable(f"{answer.reason}; nothing is sent until that is mended: check url", retry_after(answer))


def body_of(answer: Answer) -> dict[str, Any]:
    """Its JSON object; an empty one where it has none."""
    try:
        found = orjson.loads(answer.body)
    except orjson.JSONDecodeError:
        found = None
    return found if isinstance(found, dict) else {}
