"""A cluster's topics, seen and changed: the requests behind `ndcollector topics`.

Promises: looking creates nothing; settings are changed one by one (KIP-339), so that those nobody asked about stay.
Refuses: deciding what to change (topics.py), and deleting, for which there is no code here.
"""

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self

from aiokafka import errors
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Array, Boolean, Int8, Int16, Int32, Schema, String

from ndcollector.kafka_client import Connection, explain
from ndcollector.topics import KEYS, Difference, FoundTopic

_SEEING_SECONDS = 20.0
_SET = 0  # KIP-339: SET, DELETE, APPEND, SUBTRACT


class KafkaAdminError(Exception):
    """A cluster that cannot be asked or does not obey; the text names it and the remedy."""


class _IncrementalAlterConfigsResponse(Response):  # type: ignore[misc]  # aiokafka ships no types
    API_KEY = 44
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        ("responses", Array(("error_code", Int16), ("error_message", String()), ("type", Int8), ("name", String()))),
    )


class _IncrementalAlterConfigsRequestV0(RequestStruct):  # type: ignore[misc]
    """aiokafka knows only the older AlterConfigs, which resets what it does not name."""

    API_KEY = 44
    API_VERSION = 0
    RESPONSE_TYPE = _IncrementalAlterConfigsResponse
    SCHEMA = Schema(
        (
            "resources",
            Array(
                ("type", Int8),
                ("name", String()),
                ("configs", Array(("name", String()), ("operation", Int8), ("value", String()))),
            ),
        ),
        ("validate_only", Boolean),
    )


class _IncrementalAlterConfigs(Request[_IncrementalAlterConfigsRequestV0]):  # type: ignore[misc]
    API_KEY = 44

    def __init__(self, topic: str, settings: Sequence[tuple[str, str]]) -> None:
        self._resource = (int(ConfigResourceType.TOPIC), topic, [(key, _SET, value) for key, value in settings])

    def build(self, request_struct_class: type[Any]) -> Any:
        """The request in the one version we speak."""
        return request_struct_class([self._resource], False)


class KafkaAdmin:
    """One cluster. Use as a context; every call raises KafkaAdminError."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._client: Any = None

    async def __aenter__(self) -> Self:
        try:
            self._client = AIOKafkaAdminClient(**self._connection.arguments())
            await self._client.start()
        except (OSError, errors.KafkaError) as error:
            await self.__aexit__(None, None, None)
            raise KafkaAdminError(await self._connection.why_unreachable()) from error
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._client is not None:
            await self._client.close()

    async def look(self, names: Sequence[str]) -> tuple[int, Mapping[str, FoundTopic]]:
        """How many brokers there are, and those of these topics that exist."""
        try:
            metadata = await self._client._get_cluster_metadata()  # noqa: SLF001 - its public twins ask twice
            described = {topic["topic"]: topic for topic in metadata.to_object()["topics"]}
            there = [name for name in names if name in described and not described[name]["error_code"]]
            settings = await self._settings(there) if there else {}
        except errors.KafkaError as error:
            raise KafkaAdminError(explain(error)) from error
        found = {
            name: FoundTopic(
                partitions=len(described[name]["partitions"]),
                replication=min(len(one["replicas"]) for one in described[name]["partitions"]),
                settings=settings.get(name, {}),
            )
            for name in there
        }
        return len(metadata.brokers), found

    async def make(self, difference: Difference) -> None:
        """Do one of the differences; a warning is left as it is."""
        topic = difference.topic
        try:
            if difference.action == "create":
                new = NewTopic(
                    topic, difference.partitions, difference.replication, topic_configs=dict(difference.settings)
                )
                _check(topic, (await self._client.create_topics([new])).topic_errors)
            elif difference.action == "grow":
                await self._client.create_partitions({topic: NewPartitions(difference.partitions)})
            elif difference.action == "set":
                answer = await self._client._send_request(  # noqa: SLF001 - it has no public way for such a request
                    _IncrementalAlterConfigs(topic, difference.settings)
                )
                _check(topic, [(topic, code, message) for code, message, *_ in answer.responses])
        except errors.KafkaError as error:
            raise KafkaAdminError(f"topic {topic}: {explain(error, f'topic {topic}')}") from error

    async def see(self, names: Sequence[str]) -> None:
        """Wait until the brokers that are asked know these topics: a controller's word comes before theirs."""
        try:
            async with asyncio.timeout(_SEEING_SECONDS):
                while len((await self.look(names))[1]) < len(names):  # noqa: ASYNC110 - the brokers tell nobody
                    await asyncio.sleep(_SEEING_SECONDS / 100)
        except TimeoutError as error:
            raise KafkaAdminError(
                f"the topics were made, but {_SEEING_SECONDS:.0f} seconds later not every broker knows them; "
                "look at the brokers' logs, then run `ndcollector topics diff`"
            ) from error

    async def _settings(self, names: Sequence[str]) -> dict[str, dict[str, str]]:
        wanted = dict.fromkeys(KEYS, "")
        resources = [ConfigResource(ConfigResourceType.TOPIC, name, wanted) for name in names]
        found: dict[str, dict[str, str]] = {}
        with suppress(errors.IncompatibleBrokerVersion):
            for answer in await self._client.describe_configs(resources):
                for code, _message, _type, name, entries in (resource[:5] for resource in answer.resources):
                    found[name] = {} if code else {entry[0]: entry[1] for entry in entries}
        return found


def _check(topic: str, answers: Sequence[tuple[Any, ...]]) -> None:
    for _name, code, message in (answer[:3] for answer in answers):
        if code:
            error = errors.for_code(code)
            raise KafkaAdminError(f"topic {topic}: {message or explain(error(), f'topic {topic}')}")
