"""Settings of the Kafka plugs, tokens for OAUTHBEARER, and reasons in words: no broker needed."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiokafka import errors
from pydantic import ValidationError

from ndcollector.kafka_client import ConnectionConfig, SaslConfig, explain
from ndcollector.kafka_token import TokenSource
from ndcollector.outputs import kafka

SERVERS = {"bootstrap_servers": ["kafka-1:9092", "[::1]:9092"]}


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ({"bootstrap_servers": []}, "at least 1 item"),
        ({"bootstrap_servers": ["kafka-1"]}, "write host:port such as kafka-1:9092"),
        ({"bootstrap_servers": ["kafka-1:0"]}, "is not a broker's address"),
        ({**SERVERS, "tls": {"cert_file": "c.crt"}}, "a certificate and its key come together"),
        ({**SERVERS, "sasl": {"mechanism": "PLAIN", "username": "u"}}, "PLAIN needs it"),
        ({**SERVERS, "sasl": {"mechanism": "OAUTHBEARER"}}, "needs it \\(or token_file\\)"),
        ({**SERVERS, "sasl": {"mechanism": "OAUTHBEARER", "token_url": "ftp://x"}}, "pattern"),
        ({**SERVERS, "timeout": "20s"}, "more than twice request_timeout"),
        ({**SERVERS, "topics": {"alerts": "no spaces"}}, "pattern"),
        ({**SERVERS, "topics": {"alerts": {"partitions": 3, "name": "a", "colour": "red"}}}, "colour"),
    ],
)
def test_a_mistake_is_said(written: dict[str, object], said: str) -> None:
    """Strict configuration: refused at the start, with the remedy."""
    with pytest.raises((ValidationError, ValueError), match=said):
        kafka.Config.model_validate(written)


def test_secrets_are_not_shown() -> None:
    """Settings are logged and compared; passwords must not be read there."""
    sasl = {"mechanism": "PLAIN", "username": "u", "password": "s3cret"}
    config = ConnectionConfig.model_validate({**SERVERS, "sasl": sasl})
    assert "s3cret" not in repr(config) + config.model_dump_json()


def test_reasons_name_the_topic_and_the_remedy() -> None:
    """What an operator reads in the journal."""
    assert explain(errors.UnknownTopicOrPartitionError(), "topic x").startswith("topic x does not exist; `ndcollector")
    wrapped = errors.KafkaConnectionError("outer")
    wrapped.__cause__ = ConnectionRefusedError(111, "refused")
    assert explain(wrapped) == "nothing listens there"
    assert explain(RuntimeError("odd")) == "RuntimeError: odd"


class Server:
    """An authorisation server: answers in turn what `answers` holds, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: list[web.Response] = []
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        form = {key: str(value) for key, value in (await request.post()).items()}
        self.asked.append((request.headers["Authorization"], form))
        return self.answers.pop(0)


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    """On loopback."""
    found = Server()
    application = web.Application()
    application.router.add_post("/token", found.answer)
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    found.url = f"http://127.0.0.1:{runner.addresses[0][1]}/token"
    yield found
    await runner.cleanup()


def sasl(**settings: str) -> SaslConfig:
    return SaslConfig.model_validate({"mechanism": "OAUTHBEARER", **settings})


async def test_a_token_is_asked_for_once_and_again_before_it_ends(server: Server) -> None:
    """RFC 6749 §4.4: client credentials by basic authentication, a form, and expires_in."""
    now = 1000.0
    config = sasl(token_url=server.url, client_id="us", client_secret="it's", scope="kafka")
    source = TokenSource(config, clock=lambda: now)
    for name in ("first", "second"):
        server.answers.append(web.json_response({"access_token": name, "expires_in": 300}))
    assert [await source.token(), await source.token()] == ["first", "first"]
    now += 241
    assert await source.token() == "second"
    assert server.asked[0] == (
        "Basic dXM6aXQlMjdz", {"grant_type": "client_credentials", "scope": "kafka"}
    )  # fmt: skip


@pytest.mark.parametrize(
    "answer",
    [
        lambda: web.Response(status=401, text="invalid_client"),
        lambda: web.Response(text="not json"),
        lambda: web.json_response({"token": "x"}),
        lambda: web.json_response(["x"]),
    ],
)
async def test_a_refusal_says_who_refused(server: Server, answer: object) -> None:
    """The reason reaches the operator; the secret does not."""
    source = TokenSource(sasl(token_url=server.url, client_id="us", client_secret="s3cret"))
    server.answers.append(answer())  # type: ignore[operator]
    with pytest.raises(errors.AuthenticationFailedError, match=server.url) as refusal:
        await source.token()
    assert "s3cret" not in str(refusal.value)


async def test_a_token_file_is_read_at_every_connection(tmp_path: Path) -> None:
    """Someone else renews it."""
    file = tmp_path / "token"
    source = TokenSource(sasl(token_file=str(file)))
    with pytest.raises(errors.AuthenticationFailedError, match="token"):
        await source.token()
    file.write_text("one\n")
    assert await source.token() == "one"
    file.write_text("two\n")
    assert await source.token() == "two"
