"""The operator's end of the admin socket: HTTP over the unix socket that the daemon listens on.

Promises: `get` and `post` give the open response of a success and raise AdminError, in words for a person, for
everything else: no daemon, no permission, a refusal with its reason. Refuses: printing and exiting.
"""

import argparse
import http.client
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from ndagent.core.yaml_file import ConfigError
from ndcollector.config import add_config_option, load

_ANSWER_BYTES = 64 * 1024
_TIMEOUT_SECONDS = 30.0  # the daemon says something every second or so on every route that stays open


class AdminError(Exception):
    """The daemon did not do it; the text says why, and the remedy where there is one."""


class AdminClient(http.client.HTTPConnection):
    """One connection; close it (`contextlib.closing`)."""

    def __init__(self, path: Path, *, timeout_seconds: float = _TIMEOUT_SECONDS) -> None:
        super().__init__("localhost", timeout=timeout_seconds)
        self._path = path

    def connect(self) -> None:
        """As HTTPConnection, to the unix socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))

    def get(self, route: str, query: Mapping[str, str] | None = None) -> http.client.HTTPResponse:
        """The response, its body still to be read; raises AdminError, after which the connection is closed."""
        try:
            return self._get(f"{route}?{urlencode(query)}" if query else route)
        except AdminError:
            self.close()
            raise

    def post(self, route: str, body: bytes) -> http.client.HTTPResponse:
        """As `get`, for a route that does something; `body` is JSON."""
        try:
            return self._get(route, method="POST", body=body, headers={"Content-Type": "application/json"})
        except AdminError:
            self.close()
            raise

    def _get(self, target: str, *, method: str = "GET", **more: Any) -> http.client.HTTPResponse:
        try:
            self.request(method, target, **more)
            response = self.getresponse()
        except PermissionError as error:
            raise AdminError(f"{self._path}: {error.strerror}; use sudo, or join the collector's group") from error
        except (OSError, http.client.HTTPException) as error:
            raise AdminError(f"{self._path}: no collector answers ({error}); systemctl status ndcollector") from error
        if response.status != http.HTTPStatus.OK:
            raise AdminError(_reason(response))
        return response


def _reason(response: http.client.HTTPResponse) -> str:
    text = response.read(_ANSWER_BYTES).decode("utf-8", "replace").strip()
    try:
        return str(json.loads(text)["error"])
    except (ValueError, TypeError, KeyError):
        return text or f"HTTP {response.status}"


def add_socket_options(parser: argparse.ArgumentParser) -> None:
    """`-c FILE`, whose `admin.socket` is used, and `--socket PATH` for whoever may not read the configuration."""
    add_config_option(parser)
    parser.add_argument("--socket", type=Path, metavar="PATH", help="admin socket (default: the configuration's)")


def socket_path(arguments: argparse.Namespace) -> Path:
    """The socket that these options name; raises AdminError where the configuration cannot be read."""
    if arguments.socket is not None:
        given: Path = arguments.socket
        return given
    try:
        return load(arguments.config).admin.socket
    except ConfigError as error:
        raise AdminError(f"{error}\n(--socket PATH needs no configuration)") from error
