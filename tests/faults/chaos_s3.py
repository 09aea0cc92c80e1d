"""S3 that answers only for what it has on disk; a process of its own, to be killed.

    chaos_s3.py PORT FILE

It is moto, whose state is in memory, behind a journal: FILE has a line for each request that changed something. A start
has moto carry them out again.
Promises: an object is answered for, and shown to anybody, after it is in FILE and synced; a request that does not come
whole is not carried out.
"""

import base64
import io
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import orjson
from chaos_receiver import Store
from moto.server import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import run_simple
from werkzeug.test import run_wsgi_app

_READING = ("GET", "HEAD")


class DurableS3:
    """moto behind a journal of the requests that changed it; one at a time, so that none sees what is not synced."""

    def __init__(self, file: Path) -> None:
        self._moto: Any = DomainDispatcherApplication(create_backend_app)
        self._turn = threading.Lock()
        self._store = Store(str(file))
        for entry in map(orjson.loads, file.read_bytes().splitlines()):
            self._ask(entry["environ"], base64.b64decode(entry["body"]))

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """WSGI."""
        size = int(environ.get("CONTENT_LENGTH") or 0)
        body = environ["wsgi.input"].read(size)
        if len(body) < size:
            raise ConnectionError("the request did not come whole")
        kept = {name: value for name, value in environ.items() if isinstance(value, str)}
        with self._turn:
            content, status, headers = self._ask(kept, body)
            if environ["REQUEST_METHOD"] not in _READING and status.startswith("20"):
                entry = {"environ": kept, "body": base64.b64encode(body).decode()}
                self._store.keep(orjson.dumps(entry) + b"\n")
        start_response(status, list(headers))
        return content

    def _ask(self, environ: dict[str, str], body: bytes) -> Any:
        streams = {"wsgi.input": io.BytesIO(body), "wsgi.errors": sys.stderr, "wsgi.version": (1, 0)}
        return run_wsgi_app(self._moto, {**environ, **streams, "wsgi.input_terminated": True}, buffered=True)


def main() -> None:
    """See the module."""
    server = DurableS3(Path(sys.argv[2]))
    run_simple("127.0.0.1", int(sys.argv[1]), server, threaded=True, request_handler=MotoRequestHandler)


if __name__ == "__main__":
    main()
