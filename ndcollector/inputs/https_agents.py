"""An agent's other routes: its status report up, its policy down.

Promises: a report is taken only if it is one (400 says what is wrong with it); a policy that the agent has already,
which it tells by its entity tag, is not sent again (304).
Refuses: deciding anything: the fleet behind the Gate does.
"""

import hashlib

from aiohttp import web

from ndagent.wire import routes
from ndagent.wire.fields import BadDocument
from ndagent.wire.status import MAX_STATUS_BYTES, AgentStatus
from ndcollector.inputs.agent_gate import Gate
from ndcollector.inputs.https_body import BodyLimits, Budget, read_body
from ndcollector.inputs.https_problem import Problem
from ndcollector.inputs.https_server import Call, Route

UNAVAILABLE = "unavailable"
"""What the fleet says where it cannot say yes or no for now."""
UNDECIDED = ("undecided", "the fleet's inventory cannot be asked at the moment", "try again in a moment")
UNDECIDED_SECONDS = 1
POLICY_TYPE = "application/octet-stream"


class Reports:
    """Status and policy; without a gate (no fleet) reports go nowhere and nobody has a policy."""

    def __init__(self, gate: Gate | None, *, limits: BodyLimits, budget: Budget) -> None:
        self._gate = gate
        self._limits = BodyLimits(MAX_STATUS_BYTES, limits.timeout_seconds, limits.bytes_per_second)
        self._budget = budget

    def routes(self) -> list[Route]:
        """What this answers."""
        return [
            Route("POST", routes.STATUS, "status", self.status),
            Route("GET", routes.POLICY, "policy", self.policy),
        ]

    async def status(self, call: Call) -> web.Response:
        """204 once the fleet has it; raises Problem."""
        gate = self._admitted(call)
        document = await read_document(call, self._limits, self._budget)
        try:
            AgentStatus.from_json(document)
        except BadDocument as error:
            raise bad_document(error) from None
        if gate is not None:
            gate.status(call.agent_id, document)
        return web.Response(status=204)

    async def policy(self, call: Call) -> web.Response:
        """The signed bundle as it is, 304 (RFC 9110 §15.4.5), or 204 where there is none; raises Problem."""
        gate = self._admitted(call)
        bundle = gate.downlink(call.agent_id) if gate is not None else None
        if bundle is None:
            return web.Response(status=204)
        tag = f'"{hashlib.sha256(bundle).hexdigest()[:32]}"'
        if _matches(call.http.headers.get("If-None-Match", ""), tag):
            return web.Response(status=304, headers={"ETag": tag})
        return web.Response(body=bundle, content_type=POLICY_TYPE, headers={"ETag": tag, "Cache-Control": "no-cache"})

    def _admitted(self, call: Call) -> Gate | None:
        if self._gate is not None:
            admit(self._gate, call)
        return self._gate


def admit(gate: Gate, call: Call, *, spool_id: str = "", run_id: str = "") -> None:
    """Ask the fleet; raises Problem: 403 for an agent that it does not want, 503 where it cannot say."""
    address = call.origin.address
    reason = gate.admit(call.agent_id, spool_id=spool_id, run_id=run_id, address=address)
    if reason == UNAVAILABLE:
        raise Problem(503, *UNDECIDED, retry_after_seconds=UNDECIDED_SECONDS)
    if reason is not None:
        raise Problem(403, "not_admitted", reason, "ask who runs the collector: ndcollector agents show")
    gate.seen(call.agent_id, address=address, transport="https")


async def no_content(_: Call) -> web.Response:
    """204: the route is there, and has nothing to give."""
    return web.Response(status=204)


async def read_document(call: Call, limits: BodyLimits, budget: Budget) -> bytes:
    """A small body, whole; raises Problem."""
    lease = budget.lease()
    try:
        return await read_body(call.http, limits, lease)
    finally:
        lease.release()


def bad_document(error: BadDocument) -> Problem:
    """400 for a document that has not the shape of its route."""
    return Problem(400, "bad_request", str(error), "check that agent and collector have versions that fit")


def _matches(header: str, tag: str) -> bool:
    """Whether If-None-Match names this tag; weak comparison (RFC 9110 §13.1.2)."""
    return header.strip() == "*" or any(one.strip().removeprefix("W/") == tag for one in header.split(","))
