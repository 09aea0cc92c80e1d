"""How to reach a Kafka cluster: the settings that output, input and `ndcollector topics` share, and what failures mean.

Promises:
  * a broker's certificate is always verified, its name too; client certificates and CAs are read anew for every
    session and by `refresh`, so a renewed file needs no restart;
  * secrets are SecretStr: no log line, no reference file shows one;
  * `explain` names the broker or topic and what to do, in one line.
Refuses: GSSAPI (Kerberos needs a library that no wheel carries), plain SSL without verification, and sending or reading
events (outputs/kafka.py, inputs/kafka.py). aiokafka is imported here and in modules that only a configured plug loads.
"""

import asyncio
import logging
import re
import ssl
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, SecretStr, model_validator

from ndagent.core.client_certificate import ClientCertificateConfig
from ndagent.core.settings import ConfigPath, Duration, Kind, SettingError, Settings

try:
    from aiokafka import errors
    from aiokafka.protocol.metadata import MetadataRequest

    from ndcollector.kafka_bootstrap import connect, let_go
    from ndcollector.kafka_token import TokenSource
except ImportError as missing:
    raise ImportError(f"{missing}; pip install 'neurodefender-collector[kafka]'") from missing

PROBE_SECONDS = 5.0
"""How long one broker is asked why it cannot be reached, once an attempt has failed."""

METADATA_MAX_AGE_SECONDS = 60.0
"""How soon new partitions are seen. Kafka's own default is five minutes; asking costs next to nothing."""

_SERVER = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^\s:/,\[\]]+):(\d{1,5})")


class InvalidRecordError(errors.BrokerResponseError):  # type: ignore[misc]  # aiokafka ships no types
    """Error 87: the broker will never take this record (a compacted topic, or a validator of its own)."""

    errno = 87
    message = "INVALID_RECORD"
    description = "the broker refused a record"


errors.kafka_errors.setdefault(InvalidRecordError.errno, InvalidRecordError)  # else it is told as "unknown error"


def check_server(server: str) -> str:
    """A broker's address; raises ValueError that shows a good one."""
    match = _SERVER.fullmatch(server)
    if match is None or not 0 < int(match[2]) < 65536:
        raise ValueError(f"{server!r} is not a broker's address; write host:port such as kafka-1:9092")
    return server


Server = Annotated[str, AfterValidator(check_server), Kind("a broker's address (host:port)")]


class KafkaTlsConfig(ClientCertificateConfig):
    """TLS to the brokers; `tls: {}` trusts the system's CAs and shows no certificate."""


class SaslConfig(Settings):
    """Who we are to the brokers, where that is not our certificate."""

    mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"] = Field(
        description="PLAIN sends the password as it is: only over TLS."
    )
    username: str | None = Field(default=None, description="For PLAIN and SCRAM.")
    password: SecretStr | None = Field(
        default=None, description="For PLAIN and SCRAM; keep it in a file: ${file:/etc/ndcollector/kafka.password}."
    )
    token_file: ConfigPath | None = Field(
        default=None, description="For OAUTHBEARER: a file that holds a token that someone else renews."
    )
    token_url: str | None = Field(
        default=None,
        pattern=r"^https?://",
        description="For OAUTHBEARER: where tokens are had with client credentials (RFC 6749, section 4.4).",
    )
    client_id: str | None = Field(default=None, description="For token_url.")
    client_secret: SecretStr | None = Field(default=None, description="For token_url.")
    scope: str | None = Field(default=None, description="For token_url, where the server wants one.")

    @model_validator(mode="after")
    def _has_what_its_mechanism_needs(self) -> Self:
        if self.mechanism != "OAUTHBEARER":
            needed = ["username", "password"]
        elif self.token_file is not None:
            needed = []
        else:
            needed = ["token_url", "client_id", "client_secret"]
        for key in needed:
            if getattr(self, key) is None:
                other = " (or token_file)" if key == "token_url" else ""
                raise SettingError((key,), f"is missing: {self.mechanism} needs it{other}")
        return self


class ConnectionConfig(Settings):
    """What every Kafka plug needs to find its cluster."""

    bootstrap_servers: tuple[Server, ...] = Field(
        min_length=1,
        description="Some of the cluster's brokers; the others are found through them.",
        examples=[["kafka-1:9092", "kafka-2:9092", "kafka-3:9092"]],
    )
    tls: KafkaTlsConfig | None = Field(default=None, description="TLS to the brokers; null means plain TCP.")
    sasl: SaslConfig | None = Field(default=None, description="Authentication by SASL; null means none.")
    client_id: str = Field(
        default="ndcollector", min_length=1, max_length=200, description="Our name in the brokers' logs and quotas."
    )
    request_timeout: Duration = Field(
        default=15.0,
        ge=1,
        description="A broker that takes longer to answer is given up, and whoever leads then is asked.",
    )


class Connection:
    """The arguments for aiokafka's clients, from one configuration. Make it on the loop."""

    def __init__(self, config: ConnectionConfig) -> None:
        self._config = config
        self._attempts = 0
        self._context: ssl.SSLContext | None = None
        self._tokens = TokenSource.of(config.sasl) if config.sasl is not None else None
        # Every retry of every batch is a line there; what changes is said by our own plugs.
        logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

    def arguments(self) -> dict[str, Any]:
        """For AIOKafkaProducer, AIOKafkaConsumer and AIOKafkaAdminClient; reads certificate files (OSError)."""
        servers = self._config.bootstrap_servers
        first = self._attempts % len(servers)  # a dead first broker must not cost every attempt its patience
        self._attempts += 1
        return {
            "bootstrap_servers": [*servers[first:], *servers[:first]],
            "metadata_max_age_ms": int(METADATA_MAX_AGE_SECONDS * 1000),
            "request_timeout_ms": int(self._config.request_timeout * 1000),
            **self._arguments(self._new_context()),
        }

    def refresh(self) -> None:
        """Let new connections of a session under way use what the certificate files hold now."""
        tls = self._config.tls
        if self._context is not None and tls is not None:
            with suppress(OSError):  # half-written files: the old ones stay until the next call
                _load(self._context, tls)

    async def why_unreachable(self) -> str:
        """Ask each bootstrap server for its own reason: aiokafka says only that none could be used."""
        servers = self._config.bootstrap_servers
        reasons = await asyncio.gather(*map(self._probe, servers))
        found = [f"{server}: {reason}" for server, reason in zip(servers, reasons, strict=True) if reason]
        return "; ".join(found) or "the brokers answer now"

    def _new_context(self) -> ssl.SSLContext | None:
        tls = self._config.tls
        if tls is not None:
            self._context = ssl.create_default_context(cafile=tls.ca_file)
            _load(self._context, tls)
        return self._context

    def _arguments(self, context: ssl.SSLContext | None) -> dict[str, Any]:
        config = self._config
        sasl = config.sasl
        secured, authenticated = config.tls is not None, sasl is not None
        found: dict[str, Any] = {
            "client_id": config.client_id,
            "security_protocol": f"SASL_{'SSL' if secured else 'PLAINTEXT'}"
            if authenticated
            else "SSL"
            if secured
            else "PLAINTEXT",
        }
        if context is not None:
            found["ssl_context"] = context
        if sasl is not None:
            found |= {
                "sasl_mechanism": sasl.mechanism,
                "sasl_plain_username": sasl.username,
                "sasl_plain_password": sasl.password.get_secret_value() if sasl.password is not None else None,
                "sasl_oauth_token_provider": self._tokens,
            }
        return found

    async def _probe(self, server: str) -> str | None:
        host, _, port = server.rpartition(":")
        arguments = {"request_timeout_ms": int(PROBE_SECONDS * 1000), **self._arguments(self._context)}
        connection = None
        try:
            connection = await connect(host.strip("[]"), int(port), arguments)
            answer = await connection.send(MetadataRequest([]))
        except (OSError, TimeoutError, errors.KafkaError) as error:
            return explain(error)
        finally:
            if connection is not None:
                await let_go(connection)
        if not answer.brokers and self._tokens is not None:
            # RFC 7628 §3.2.2: a refusal is a challenge, which aiokafka takes for success and the broker does not
            return "the broker refused the SASL credentials: the token is not accepted"
        return None


def _load(context: ssl.SSLContext, tls: KafkaTlsConfig) -> None:
    if tls.ca_file is not None:
        context.load_verify_locations(tls.ca_file)
    if tls.cert_file is not None:
        context.load_cert_chain(tls.cert_file, tls.key_file)


_REMEDIES: tuple[tuple[type[BaseException], str], ...] = (
    (errors.TopicAuthorizationFailedError, "the brokers do not let us write to {what}; grant Write and Describe on it"),
    (errors.ClusterAuthorizationFailedError, "the brokers do not let us write idempotently; grant IdempotentWrite"),
    (errors.TransactionalIdAuthorizationFailed, "the brokers refuse us the transactional id; grant Write on it"),
    (errors.GroupAuthorizationFailedError, "the brokers do not let us use the consumer group; grant Read on it"),
    (errors.ProducerFenced, "another producer took over our transactional id, or a transaction outlasted `timeout`"),
    (errors.InvalidProducerEpoch, "another producer took over our transactional id"),
    (errors.UnknownTopicOrPartitionError, "{what} does not exist; `ndcollector topics apply` makes it"),
    (errors.NotEnoughReplicasError, "{what} has fewer replicas in sync than min.insync.replicas; look at the brokers"),
    (errors.NotEnoughReplicasAfterAppendError, "{what} has fewer replicas in sync than min.insync.replicas"),
    (errors.KafkaStorageError, "the broker cannot write {what} (is its disk full?)"),
    (errors.NotLeaderForPartitionError, "{what} has no leader now"),
    (errors.LeaderNotAvailableError, "{what} has no leader now"),
    (errors.GroupCoordinatorNotAvailableError, "no broker coordinates {what} yet"),
    (errors.SaslAuthenticationFailed, "the broker refused the SASL credentials: {error}"),
    (errors.AuthenticationFailedError, "{error}"),
    (errors.UnsupportedSaslMechanismError, "the broker does not offer this SASL mechanism"),
    (errors.IncompatibleBrokerVersion, "the broker is too old or too new for this client"),
    (ssl.SSLCertVerificationError, "the broker's certificate is not accepted: {error}; is tls.ca_file right?"),
    (ssl.SSLError, "TLS failed: {error}; does the broker speak TLS on this port and want a certificate?"),
    (TimeoutError, "no answer in time"),
    (ConnectionRefusedError, "nothing listens there"),
)


def explain(error: BaseException, what: str = "the topic") -> str:
    """One line on what went wrong and what to do; `what` names the topic or partition it is about."""
    for cause in _causes(error):
        for kind, text in _REMEDIES:
            if isinstance(cause, kind):
                detail = getattr(cause, "verify_message", "") or getattr(cause, "reason", None) or cause
                return text.format(what=what, error=detail)
    text = getattr(error, "description", "") or str(error)
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__
