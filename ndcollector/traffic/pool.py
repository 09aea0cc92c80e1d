"""Exchanges over HTTP/1.1 with an output's endpoints: the one that is well and has least to do, and then another one.

    request ──► choose ──► place, permit ──► connection ──► answer
                  ▲                              │ no whole answer, 429, 5xx
                  └── another endpoint, at once ─┘
                          none left: Unavailable, and the delivery chain waits (full jitter, Retry-After)

Promises:
  * an exchange tries each endpoint at most once (a refused token that could be renewed, twice), and ends with a whole
    answer or Unavailable, whose reason names endpoint and remedy;
  * an endpoint that is dead, slow, gone mad or asks for a pause costs the others nothing; so does looking for endpoints
    (DNS), asking them how they are, and reading files anew: that is done beside the requests;
  * at most `concurrency.maximum` requests at a time to an endpoint; who finds no place waits for one;
  * a Retry-After counts for its endpoint alone; the chain hears the shortest, when no endpoint is left;
  * a hedge is made only for a request that says it is idempotent;
  * no secret of ours is in what an answer that is no success seems to say.
Refuses: judging answers that only the output understands (below 500, but for 429), waiting for better times.
"""

import asyncio
import logging
import random
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime

import aiohttp

from ndagent.core.interfaces import Unavailable
from ndcollector.outputs import OutputContext
from ndcollector.traffic.balance import Balance
from ndcollector.traffic.body import AnswerTooLargeError
from ndcollector.traffic.config import HttpOutputConfig
from ndcollector.traffic.credentials import INLINE_BYTES, Credentials, warn_of_plain_http
from ndcollector.traffic.discovery import Discovery
from ndcollector.traffic.endpoint import Endpoint
from ndcollector.traffic.explain import explain, may_be_tls
from ndcollector.traffic.members import Members
from ndcollector.traffic.request import Answer, Request, retry_after
from ndcollector.traffic.tending import Tending
from ndcollector.traffic.tls import ClientTls

LOOK_AT_FILES_SECONDS = 5.0
"""How soon new certificates and token files are seen; a TLS error or a 401 makes it at once."""

_UNAUTHORIZED, _CONFLICT, _TOO_MANY = 401, 409, 429
_AUTHORIZATION = "Authorization"
_MOST_REASONS = 4  # of 64 endpoints: a line of log must stay readable
_NO_ANSWER = (aiohttp.ClientError, aiohttp.http.HttpProcessingError, OSError, TimeoutError, AnswerTooLargeError)


class _NobodyLeft(Unavailable):
    """No endpoint is left to be tried."""


class _EndpointFailed(Exception):
    """This endpoint did not take the request; another one may."""


class Pool:
    """An Exchange. Make it on the loop; it looks for endpoints and connects when the first request comes."""

    def __init__(
        self, name: str, config: HttpOutputConfig, context: OutputContext, *, discovery: Discovery | None = None
    ) -> None:
        self._name = name
        self._config = config
        self._context = context
        self._log = logging.getLogger(name)
        self._clock: Callable[[], float] = asyncio.get_running_loop().time
        self._tls = ClientTls(config.tls, name=name, metrics=context.metrics)
        warn_of_plain_http(config, self._log)
        self._credentials = Credentials(config, clock=context.clock, context=lambda: self._tls.context)
        self._balance = Balance(config.balance, random=random.random)
        self._hedges = context.metrics.hedges.labels(name) if config.hedge is not None else None
        self._freed = asyncio.Event()
        self._members = Members(
            config,
            name=name,
            metrics=context.metrics,
            tls=self._tls,
            discovery=discovery or Discovery(config, log=self._log, clock=self._clock),
            clock=self._clock,
            changed=self._notify,
        )
        self._files: Tending | None = None

    async def __call__(self, request: Request) -> Answer:
        """See Exchange."""
        if self._files is None:
            self._files = Tending(self._log)
            self._files.start(self._look_at_files, after_seconds=LOOK_AT_FILES_SECONDS)
            if any(url.startswith("https:") for url in self._config.endpoints):
                await asyncio.to_thread(self._tls.look)  # the system's CAs alone are 20 ms of work
        if not self._members:
            await self._members.find_first()
        tried: dict[Endpoint, str] = {}
        if self._config.hedge is None or not request.idempotent:
            return await self._in_turn(request, tried)
        return await self._hedged(request, tried, self._config.hedge.after, self._config.hedge.most)

    async def aclose(self) -> None:
        """Close the connections; safe at any time."""
        await self._members.aclose()  # first: until then its figures stand in the metrics
        files, self._files = self._files, None
        if files is not None:
            await files.aclose()

    # One exchange.

    async def _in_turn(self, request: Request, tried: dict[Endpoint, str]) -> Answer:
        while True:
            fields = await self._credentials.fields()
            endpoint = await self._next(tried, only=request.endpoint)
            tried[endpoint] = ""
            try:
                answer = await self._attempt(endpoint, request, fields)
                if answer.status == _UNAUTHORIZED and await self._credentials.renewed(fields):
                    answer = await self._attempt_again(endpoint, request, answer)
            except _EndpointFailed as failure:
                tried[endpoint] = str(failure)
                continue
            return answer

    async def _hedged(self, request: Request, tried: dict[Endpoint, str], after: float, most: int) -> Answer:
        """As `_in_turn`, and again beside it after a while; the first answer counts.

        But for a conflict while there is another request: it says that the other one is still being worked on.
        """
        tasks = {asyncio.ensure_future(self._in_turn(request, tried))}
        failure: BaseException | None = None
        try:
            while tasks:
                may_hedge = most > 0 and self._has_another(tried)
                done, _ = await asyncio.wait(
                    tasks, timeout=after if may_hedge else None, return_when=asyncio.FIRST_COMPLETED
                )
                for task in done:
                    tasks.discard(task)
                    failure = task.exception() or failure
                    if task.exception() is None and (task.result().status != _CONFLICT or not tasks):
                        return task.result()
                if not done and self._hedges is not None:
                    most -= 1
                    self._hedges.inc()
                    tasks.add(asyncio.ensure_future(self._in_turn(request, tried)))
            if isinstance(failure, _NobodyLeft):  # it may have been said while another was under way
                raise self._nobody(tried, self._clock())
            raise failure or Unavailable("no answer")
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _next(self, tried: dict[Endpoint, str], *, only: str | None) -> Endpoint:
        """An endpoint that is well and has room, once there is one; Unavailable where there is none to wait for."""
        while True:
            now = self._clock()
            left = [one for one in self._members if one not in tried and (only is None or str(one) == only)]
            well = [endpoint for endpoint in left if endpoint.may_be_tried(now)]
            if not well:  # a wrong health check, or peers that all are worse, must not end all delivery
                well = [endpoint for endpoint in left if endpoint.may_be_tried(now, whatever_checks_say=True)]
            free = [endpoint for endpoint in well if endpoint.places.has_room]
            if free:
                return self._balance.choose(free)
            if not well and not any(endpoint.is_being_tried(now) for endpoint in left):
                raise self._nobody(tried, now)
            await self._freed.wait()

    def _has_another(self, tried: dict[Endpoint, str]) -> bool:
        now = self._clock()
        return any(
            endpoint not in tried and endpoint.places.has_room and endpoint.may_be_tried(now)
            for endpoint in self._members
        )

    def _nobody(self, tried: dict[Endpoint, str], now: float) -> _NobodyLeft:
        reasons = [tried.get(endpoint) or endpoint.why_not(now) for endpoint in self._members]
        waits = [endpoint.wait_seconds(now) for endpoint in self._members]
        more = [f"and {len(reasons) - _MOST_REASONS} more"] if len(reasons) > _MOST_REASONS else []
        text = "; ".join([*reasons[:_MOST_REASONS], *more]) or "no endpoint"
        return _NobodyLeft(text, min(waits, default=0.0) or None)

    async def _attempt_again(self, endpoint: Endpoint, request: Request, refusal: Answer) -> Answer:
        """With newer credentials, once there is room; the refusal stands where the endpoint takes nothing now."""
        fields = await self._credentials.fields()
        while endpoint in self._members and endpoint.may_be_tried(self._clock(), whatever_checks_say=True):
            if endpoint.places.has_room:
                return await self._attempt(endpoint, request, fields)
            await self._freed.wait()
        return refusal

    async def _attempt(self, endpoint: Endpoint, request: Request, fields: dict[str, str]) -> Answer:
        """A whole answer that is not one of an endpoint in trouble; raises _EndpointFailed for the rest."""
        began = self._clock()
        permit = endpoint.begin(began)
        try:
            answer = await self._talk(endpoint, request, fields)
        except _NO_ANSWER as error:
            reason = f"{endpoint} {self._explain(error, endpoint)}"
            timed_out, has_peers = isinstance(error, TimeoutError), len(self._members) > 1
            endpoint.failed(permit, self._clock(), reason=reason, timed_out=timed_out, has_peers=has_peers)
            if endpoint.is_https and may_be_tls(error):
                await asyncio.to_thread(self._tls.look)  # what was renewed since counts for the next try
            raise _EndpointFailed(reason) from error
        except BaseException:
            endpoint.withdrawn(permit, self._clock())
            raise
        else:
            self._note(endpoint, permit, answer, began)
            return answer
        finally:
            self._notify()

    async def _talk(self, endpoint: Endpoint, request: Request, fields: dict[str, str]) -> Answer:
        connection = self._members.connection(endpoint)
        if request.sign is not None:
            sign, url = request.sign, connection.url(request.path)
            large = len(request.body) > INLINE_BYTES
            signed = await asyncio.to_thread(sign, url, request.body) if large else sign(url, request.body)
            fields = {**fields, **signed}
        if self._config.hmac is not None:
            fields = {**fields, **await self._credentials.signature(request.body)}
        answer = await connection.exchange(request, fields)
        if answer.status < 300:
            return answer
        shown = {**fields, _AUTHORIZATION: request.headers.get(_AUTHORIZATION, fields.get(_AUTHORIZATION, ""))}
        return replace(answer, body=self._credentials.hide(answer.body, shown))

    def _note(self, endpoint: Endpoint, permit: int, answer: Answer, began: float) -> None:
        now = self._clock()
        if answer.status < 500 and answer.status != _TOO_MANY:
            endpoint.answered(permit, now - began, now)
            return
        wait = retry_after(answer, now=datetime.fromtimestamp(self._context.clock(), UTC)) or 0.0
        busy = answer.status == _TOO_MANY
        endpoint.pushed_back(permit, now, reason=answer.reason, retry_after_seconds=wait, busy=busy)
        raise _EndpointFailed(answer.reason)

    def _explain(self, error: BaseException, endpoint: Endpoint) -> str:
        config = self._config
        about_us = self._tls.about_us(self._context.clock()) if endpoint.is_https else ""
        return explain(
            error,
            connect_seconds=config.connect_timeout,
            request_seconds=config.request_timeout,
            about_us=about_us,
        )

    async def _look_at_files(self) -> float:
        if self._tls.is_used:
            await asyncio.to_thread(self._tls.look)
        if self._credentials.has_file:
            await asyncio.to_thread(self._credentials.look)
        return LOOK_AT_FILES_SECONDS

    def _notify(self) -> None:
        self._freed.set()
        self._freed = asyncio.Event()  # a new one for the next time: who waited on the old one is awake
