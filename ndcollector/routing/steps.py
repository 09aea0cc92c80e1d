"""The steps of `transform`, compiled: each changes one decoded event.

Promises: a step gives the same result for the same event, whatever came before; an event grows by what the
configuration says and not by what a sender wrote: what is renamed moves, what is hashed becomes 64 characters, of lists
up to MAX_HASHED values, and a longer one, like an object, becomes one hash.
Refuses: deciding which events need them (engine.py does).
"""

import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from ndagent.wire.where import Where, compile_where
from ndcollector.routing.paths import DROP, Event, Pattern, change_each, parse_path, put, take
from ndcollector.routing.redaction import Redaction
from ndcollector.routing.steps_config import HashConfig, StepConfig

MAX_HASHED = 64


class _Hashed(str):
    """What `hash` wrote: two patterns that mean the same field hash it once."""

    __slots__ = ()


Apply = Callable[[Event], bool]
"""Changes the event in place; whether it did."""


@dataclass(frozen=True, slots=True)
class Step:
    """`where` None: for every event. `hint`, where there is one, is found in every line that the step may change.

    `hides` says that what the step takes away must be gone: an event it looked at leaves with nothing it did not see.
    """

    apply: Apply
    where: Where | None
    hint: Any = None
    hides: bool = False


def compile_steps(configs: Sequence[StepConfig]) -> list[Step]:
    """In their order."""
    return [_step(config) for config in configs]


def _step(config: StepConfig) -> Step:
    where = None if config.where is None else compile_where(config.where)
    if config.redact is not None:
        redact = config.redact
        made = Redaction(redact.patterns, fields=redact.fields, replacement=redact.replacement)
        return Step(made.apply, where, made.hint, hides=True)
    if config.drop_fields is not None:
        return Step(_dropping(config.drop_fields), where, hides=True)
    if config.hash is not None:
        return Step(_hashing(config.hash), where, hides=True)
    if config.rename is not None:
        return Step(_renaming(config.rename), where)
    return Step(_adding(config.add or {}), where)


def _dropping(fields: Sequence[str]) -> Apply:
    patterns = [Pattern(field) for field in fields]
    return lambda event: change_each(patterns, event, lambda _value: DROP)


def _renaming(fields: dict[str, str]) -> Apply:
    pairs = [(parse_path(old), parse_path(new)) for old, new in fields.items()]

    def apply(event: Event) -> bool:
        changed = False
        for old, new in pairs:
            value = take(event, old)
            if value is DROP:
                continue
            if put(event, new, value):
                changed = True
            else:
                put(event, old, value)  # something that is no object stands in the way: better there than nowhere
        return changed

    return apply


def _adding(fields: dict[str, Any]) -> Apply:
    pairs = [(parse_path(field), value) for field, value in fields.items()]
    return lambda event: sum(put(event, path, value) for path, value in pairs) > 0


def _hashing(config: HashConfig) -> Apply:
    patterns = [Pattern(field) for field in config.fields]
    secret = config.secret.get_secret_value().encode() if config.secret else None

    def digest(value: Any) -> str:
        if isinstance(value, _Hashed):
            return value
        text = value.encode("utf-8", "replace") if isinstance(value, str) else orjson.dumps(value)
        found = hashlib.sha256(text).digest() if secret is None else hmac.digest(secret, text, "sha256")
        return _Hashed(found.hex())

    def change(value: Any) -> Any:
        if value is None:
            return value
        if not isinstance(value, list) or len(value) > MAX_HASHED or any(isinstance(one, dict | list) for one in value):
            return digest(value)
        return [None if one is None else digest(one) for one in value]

    return lambda event: change_each(patterns, event, change)
