"""The agent's output over real HTTPS, as the agent builds it, for tests that have a collector's input."""

import asyncio
import ssl

from https_site import AGENT

from ndagent.outputs import Target, TransportContext
from ndagent.outputs.collector import Collector, DeliveryConfig
from ndagent.outputs.https import Config as HttpsConfig
from ndagent.outputs.https import Https, build
from ndagent.wire.envelope import Header
from ndagent.wire.record import EventBatch


def seal(events: EventBatch) -> Header:
    return Header(
        stream=events.stream, spool_id=events.spool_id, first=events.sequences[0], last=events.sequences[-1],
        count=len(events), length=len(events.ndjson), sent_at_ns=1, agent_id=AGENT, run_id="ab" * 8,
    )  # fmt: skip


def transport(context: ssl.SSLContext, target: Target, offered: list[bytes] | None = None, **config: object) -> Https:
    async def offer(policy: bytes) -> None:
        (offered if offered is not None else []).append(policy)

    settings = HttpsConfig(type="https", **config)  # type: ignore[arg-type]
    return build(settings, TransportContext(AGENT, lambda: context, offer), target)


def real(context: ssl.SSLContext, target: Target) -> Collector:
    loop = asyncio.get_running_loop()

    async def targets() -> list[Target]:
        return [target]

    return Collector(
        DeliveryConfig(),
        targets=targets,
        open_way=lambda target: transport(context, target),
        seal=seal,
        clock=loop.time,
        sleep=asyncio.sleep,
        random=lambda: 0.5,
    )
