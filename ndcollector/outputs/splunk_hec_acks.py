"""Splunk's indexer acknowledgement: the word that events are indexed, and not only in a queue in memory.

    POST …/event    X-Splunk-Request-Channel: C     → {"code": 0, "ackId": 7}
    POST …/ack?channel=C   {"acks": [7]}            → {"acks": {"7": false}}, later true, once

Promises:
  * `wait` returns only when the indexer that took the request said true for it;
  * one request at a time on a channel. An indexer that restarts forgets its channels and counts from 0 again: with
    many requests on one channel, the new number 7 would acknowledge the old one, whose events are lost. So each send
    under way has a channel of its own, and one whose fate is unknown is never used again;
  * there are as many channels as there ever were sends at a time (`in_flight` by streams); Splunk removes idle ones;
  * no word within `ack_timeout` is Unavailable: the events are sent again under the same event.id.
Refuses: a load balancer in front of the indexers that does not keep a client at one of them: none of the others knows
the number. List the indexers under `urls` instead.
"""

import asyncio
from collections.abc import Callable
from uuid import uuid4

import orjson

from ndagent.core.interfaces import Unavailable
from ndcollector.outputs.splunk_hec_answers import ACK_IS_DISABLED, body_of, refusal
from ndcollector.traffic.request import Answer, Exchange, Request

PATH = "/services/collector/ack"


class Acks:
    """Of one output. `poll_seconds`: the longest pause between two questions for one request."""

    def __init__(
        self,
        exchange: Exchange,
        *,
        authorization: str,
        timeout_seconds: float,
        poll_seconds: float,
        clock: Callable[[], float],
    ) -> None:
        self._exchange = exchange
        self._headers = {"Authorization": authorization, "Content-Type": "application/json"}
        self._timeout_seconds = timeout_seconds
        self._poll_seconds = poll_seconds
        self._clock = clock
        self._free: list[str] = []
        self._is_enabled = False  # as far as we know
        self._looking = asyncio.Lock()

    async def channel(self) -> str:
        """One that no request is under way on; give it back if its request was acknowledged or refused.

        Raises Unavailable where the token has no acknowledgement: before anything was sent that would be sent for ever.
        """
        async with self._looking:
            if not self._is_enabled:
                answer = await self._ask(str(uuid4()), 0)
                if body_of(answer).get("code") == ACK_IS_DISABLED:
                    raise refusal(answer)
                self._is_enabled = True
        return self._free.pop() if self._free else str(uuid4())

    def give_back(self, channel: str) -> None:
        """Its request's fate is known."""
        self._free.append(channel)

    def missing(self, answer: Answer) -> Unavailable:
        """Of a request that was taken without a number: ask about the token before the next."""
        self._is_enabled = False
        return Unavailable(f"{answer.endpoint} took events without an ackId; enable the token's acknowledgement")

    async def wait(self, channel: str, identity: int, *, endpoint: str) -> None:
        """Return once this indexer says that the request is indexed; raises Unavailable."""
        until = self._clock() + self._timeout_seconds
        pause = self._poll_seconds / 8
        last = "not indexed yet"
        while self._clock() < until:
            await asyncio.sleep(pause)
            pause = min(2 * pause, self._poll_seconds)
            try:
                answer = await self._ask(channel, identity, endpoint=endpoint)
            except Unavailable as error:
                last = error.reason
                continue
            acks = body_of(answer).get("acks")
            if not isinstance(acks, dict):
                last = refusal(answer).reason
            elif acks.get(str(identity)) is True:
                return
            else:
                last = "not indexed yet"
        raise Unavailable(
            f"{endpoint} did not acknowledge within {self._timeout_seconds:g}s ({last}); its events are sent again. "
            f"Has it restarted, or is there a load balancer that does not keep us at one indexer?"
        )

    async def _ask(self, channel: str, identity: int, *, endpoint: str | None = None) -> Answer:
        body = orjson.dumps({"acks": [identity]})
        headers = {**self._headers, "X-Splunk-Request-Channel": channel}
        path = f"{PATH}?channel={channel}"
        return await self._exchange(Request("POST", path, body, headers, idempotent=True, endpoint=endpoint))
