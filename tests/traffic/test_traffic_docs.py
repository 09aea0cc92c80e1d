"""docs/traffic.md says what is so: its example is valid, its receiver accepts what is sent, its states are those."""

import re
from pathlib import Path
from typing import Any

import yaml
from http_far_side import far_side
from pools import pool

from ndcollector.outputs import https
from ndcollector.traffic.endpoint import Condition
from ndcollector.traffic.request import Request

TEXT = (Path(__file__).parents[2] / "docs" / "traffic.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    """The first block of code in this language."""
    found = re.search(rf"```{language}\n(.*?)```", TEXT, re.DOTALL)
    assert found is not None
    return found[1]


def test_the_worked_example_is_valid_and_shows_every_traffic_setting() -> None:
    """Defaults are shown as they are, but for what the example is about."""
    [settings] = yaml.safe_load(block("yaml"))["outputs"].values()
    config = https.Config.model_validate(settings)
    defaults = https.Config(url="https://a")
    for name in ("endpoint_breaker", "outliers", "concurrency", "request_timeout", "connect_timeout", "timeout"):
        assert getattr(config, name) == getattr(defaults, name)


async def test_the_receiver_in_the_document_accepts_a_signed_request_and_nothing_else() -> None:
    """A changed body, another secret, an old one."""
    names: dict[str, Any] = {}
    exec(block("python"), names)
    is_genuine = names["is_genuine"]
    async with far_side() as server, pool(server.url, hmac={"secret": "s3cret"}) as made:
        await made(Request("POST", "", b"body"))
    header = server.requests[0].headers["x-signature"]
    assert is_genuine(b"s3cret", header, b"body")
    assert not is_genuine(b"s3cret", header, b"Body")
    assert not is_genuine(b"secret", header, b"body")
    assert not is_genuine(b"s3cret", header, b"body", most_seconds=-1)


def test_the_picture_has_every_state() -> None:
    """With the number that the metric shows."""
    picture = TEXT.partition("## The states of an endpoint")[2].partition("## ")[0]
    for condition in Condition:
        assert f"({condition.value})" in picture
