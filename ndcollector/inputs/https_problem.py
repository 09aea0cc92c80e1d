"""Why a request was not done, as the peer gets it: a status, and JSON that says what happened and what helps.

    {"reason": "too_many_requests", "error": "…", "remedy": "…", "message": "… : …"}

`reason` is for programs (a closed set: it stands at the place that raises it), `error` and `remedy` are for people,
`message` is both in one sentence, so that every answer is also an `enrolment.Refusal`.
"""

import orjson
from aiohttp import web

JSON_TYPE = "application/json"


class Problem(Exception):
    """Raised by whoever handles a request; becomes the response."""

    def __init__(self, status: int, reason: str, error: str, remedy: str, *, retry_after_seconds: int = 0) -> None:
        super().__init__(f"{status} {reason}: {error}")
        self.status = status
        self.reason = reason
        self.error = error
        self.remedy = remedy
        self.retry_after_seconds = retry_after_seconds
        self.allow = ""

    def response(self) -> web.Response:
        """The response; HTTP 429 and 503 carry Retry-After (RFC 9110 §10.2.3), 405 carries Allow (§15.5.6)."""
        body = {"reason": self.reason, "error": self.error, "remedy": self.remedy}
        body["message"] = f"{self.error}: {self.remedy}"
        response = json_response(orjson.dumps(body), status=self.status)
        if self.retry_after_seconds:
            response.headers["Retry-After"] = str(self.retry_after_seconds)
        if self.allow:
            response.headers["Allow"] = self.allow
        return response


def json_response(body: bytes, *, status: int = 200) -> web.Response:
    """A response of this JSON text."""
    return web.Response(status=status, body=body, content_type=JSON_TYPE)


def method_not_allowed(allowed: str) -> Problem:
    """405 for a path that knows other methods."""
    problem = Problem(405, "method_not_allowed", "this path does not take that method", f"use {allowed}")
    problem.allow = allowed
    return problem


NOT_FOUND = ("not_found", "there is nothing at this path", "check the URL, and that both sides have one version")
NO_CERTIFICATE = (
    "no_certificate",
    "this needs an agent's client certificate",
    "enrol first (ndagent enroll), and send the certificate from then on",
)
MALFORMED = ("malformed_request", "this is not HTTP as RFC 9112 has it", "look for a proxy that rewrites requests")
STOPPING = ("stopping", "this collector stops", "try again in a moment, or use another collector")
STOPPING_SECONDS = 5
FAILED = ("failed", "the collector failed to handle this", "try again; its log says why")
