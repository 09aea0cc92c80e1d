"""librdkafka's mock cluster: brokers on loopback inside this process, for tests of speed and of the usual path.

Promises: three brokers with real sockets, topics of four partitions (the mock's own number), idempotence checked by
sequence numbers. Refuses: what only the real thing has (TLS, SASL, authorisation, min.insync.replicas, configs).
"""

from types import TracebackType
from typing import Self

from confluent_kafka import Producer


class MockCluster:
    """Ends with the context."""

    def __init__(self, *topics: str, brokers: int = 3) -> None:
        self._handle = Producer({"test.mock.num.brokers": brokers, "log_level": 0})
        found = self._handle.list_topics(timeout=10).brokers.values()
        self.servers = [f"{broker.host}:{broker.port}" for broker in found]
        for topic in topics:
            self._handle.list_topics(topic, timeout=10)  # asking for it makes it

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        del self._handle


