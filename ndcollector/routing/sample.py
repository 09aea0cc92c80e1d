"""Which events are kept where one of many is enough: decided by event.id, so the same way whenever and wherever.

Promises: the same event has the same fate after any replay, on any collector, and at every output with the same salt; a
smaller share keeps a part of what a larger one keeps. What has no event.id is kept.
"""

import hashlib
import re
from typing import Annotated

import orjson
from pydantic import AfterValidator, BeforeValidator, Field

from ndagent.core.settings import Kind, Settings
from ndagent.wire.ecs import base36
from ndagent.wire.record import EventBatch
from ndcollector.routing.steps_config import WhereText

_SHARE = re.compile(r"([0-9]{1,3}(?:\.[0-9]{1,6})?)%|([1-9][0-9]{0,8})")


def parse_share(value: object) -> str:
    """`10` or `5%` as it is written; raises ValueError that shows both."""
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    found = _SHARE.fullmatch(text)
    if found is None or not 0 < share_of(text) <= 1:
        raise ValueError(f"{value!r} is no share; write 10 for one event of ten, or 5% (more than 0, at most 100)")
    return text


def share_of(text: str) -> float:
    """The share of 1 that a checked text means."""
    return float(text[:-1]) / 100 if text.endswith("%") else 1 / int(text)


Share = Annotated[str, BeforeValidator(parse_share), Kind("one of so many (10), or a percentage (5%)")]


class SampleConfig(Settings):
    """One event of many; `sample: 10` is short for `sample: {keep: 10}`."""

    keep: Share = Field(description="One event of so many, or so much of them.", examples=[10])
    where: WhereText | None = Field(
        default=None, description="Only of events that match; the others are all kept. Null: of all."
    )
    salt: Annotated[str, AfterValidator(str)] = Field(
        default="", max_length=64, description="Outputs with different salts keep different events."
    )


def _share_alone(value: object) -> object:
    return {"keep": value} if isinstance(value, int | str) and not isinstance(value, bool) else value


Sample = Annotated[SampleConfig, BeforeValidator(_share_alone), Kind("one of so many (10), 5%, or settings")]


class Lot:
    """Draws for each event; the draw is a hash of its id."""

    def __init__(self, config: SampleConfig) -> None:
        self._most = int(share_of(config.keep) * 2**64)
        self._salt = config.salt.encode()[:64]

    def keeps(self, events: EventBatch, position: int, line: bytes) -> bool:
        """Whether the event at this position, whose line this is, is one of those that are kept."""
        own = b"%b-%b" % (events.spool_id.encode(), base36(events.sequences[position]))
        if b'"event":{"id":"%b"' % own not in line:  # an id that another spool gave
            found = _id_of(line)
            if found is None:
                return True
            own = found
        drawn = hashlib.blake2b(own, digest_size=8, key=self._salt).digest()
        return int.from_bytes(drawn, "big") < self._most


def _id_of(line: bytes) -> bytes | None:
    try:
        identity = orjson.loads(line)["event"]["id"]
    except (ValueError, KeyError, TypeError):
        return None
    return identity.encode() if isinstance(identity, str) else None
