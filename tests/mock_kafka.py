"""librdkafka's mock cluster as a process of its own: brokers on loopback that take what they get, for speed.

    python tests/mock_kafka.py TOPIC [TOPIC …]        prints the brokers' addresses, serves until its stdin ends

Promises: three brokers with real sockets, topics of four partitions (the mock's own number), idempotence checked by
sequence numbers; each partition keeps its last 5 MiB, its offsets count everything.
Refuses: what only the real thing has (TLS, SASL, authorisation, min.insync.replicas, settings).
"""

import subprocess
import sys
from types import TracebackType
from typing import Self

from confluent_kafka import Consumer, Producer, TopicPartition

PARTITIONS = 4


class MockCluster:
    """Ends with the context."""

    def __init__(self, *topics: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__, *topics], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.servers = self._process.stdout.readline().strip()
        self._watcher = Consumer({"bootstrap.servers": self.servers, "group.id": "count", "log_level": 0})

    @property
    def pid(self) -> int:
        """Of the brokers' process."""
        return self._process.pid

    def count(self, topic: str) -> int:
        """Records that the brokers have taken."""
        ends = (self._watcher.get_watermark_offsets(TopicPartition(topic, p), timeout=10) for p in range(PARTITIONS))
        return sum(end for _, end in ends)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._watcher.close()
        self._process.communicate()


def main(topics: list[str]) -> None:
    """Serve until stdin ends."""
    cluster = Producer({"test.mock.num.brokers": 3, "log_level": 0})
    brokers = cluster.list_topics(timeout=10).brokers.values()
    for topic in topics:
        cluster.list_topics(topic, timeout=10)  # asking for it makes it
    print(",".join(f"{broker.host}:{broker.port}" for broker in brokers), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main(sys.argv[1:])
