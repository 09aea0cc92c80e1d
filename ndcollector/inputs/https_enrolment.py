"""An agent's way in: the CA certificates, enrolment with a token, renewal with the certificate that ends soon.

Promises: what the Enroller refuses is answered with its own document (wire/enrolment.py), status and Retry-After; it
counts wrong tokens by address and bounds how many wait. A renewal is for the agent of the connection's certificate.
Refuses: tokens in a URL, and keeping any: a request's document is gone with its answer.
"""

import math
from collections.abc import Awaitable

from aiohttp import web

from ndagent.wire import routes
from ndagent.wire.enrolment import MAX_REQUEST_BYTES, Answer, EnrolRequest, RenewRequest
from ndagent.wire.fields import BadDocument
from ndcollector.agents.enrolment import EnrolmentRefused
from ndcollector.inputs.agent_gate import Enroller
from ndcollector.inputs.https_agents import bad_document, read_document
from ndcollector.inputs.https_body import BodyLimits, Budget
from ndcollector.inputs.https_problem import json_response
from ndcollector.inputs.https_server import Call, Route

CA_TYPE = "application/pem-certificate-chain"  # RFC 8555 §9.1


class Enrolling:
    """The routes that lead to `enroller`."""

    def __init__(self, enroller: Enroller, *, limits: BodyLimits, budget: Budget) -> None:
        self._enroller = enroller
        self._limits = BodyLimits(MAX_REQUEST_BYTES, limits.timeout_seconds, limits.bytes_per_second)
        self._budget = budget

    def routes(self) -> list[Route]:
        """What this answers."""
        return [
            Route("GET", routes.CA, "ca", self.authorities, certificate=False),
            Route("POST", routes.ENROLL, "enroll", self.enrol, certificate=False),
            Route("POST", routes.RENEW, "renew", self.renew),
        ]

    async def authorities(self, _: Call) -> web.Response:
        """PEM; agents look for the one that their token names."""
        try:
            return web.Response(text=self._enroller.authorities(), content_type=CA_TYPE)
        except EnrolmentRefused as refused:
            return _refusal(refused)

    async def enrol(self, call: Call) -> web.Response:
        """Raises Problem."""
        document = await read_document(call, self._limits, self._budget)
        try:
            request = EnrolRequest.from_json(document)
        except BadDocument as error:
            raise bad_document(error) from None
        return await _answer(self._enroller.enrol(request, call.origin.address))

    async def renew(self, call: Call) -> web.Response:
        """Raises Problem."""
        document = await read_document(call, self._limits, self._budget)
        try:
            request = RenewRequest.from_json(document)
        except BadDocument as error:
            raise bad_document(error) from None
        return await _answer(self._enroller.renew(call.agent_id, request, call.origin.serial, call.origin.address))


async def _answer(deciding: Awaitable[Answer]) -> web.Response:
    try:
        answer = await deciding
    except EnrolmentRefused as refused:
        return _refusal(refused)
    return json_response(answer.to_json())


def _refusal(refused: EnrolmentRefused) -> web.Response:
    response = json_response(refused.refusal.to_json(), status=refused.status)
    if refused.retry_after_seconds is not None:
        response.headers["Retry-After"] = str(math.ceil(refused.retry_after_seconds))
    return response
