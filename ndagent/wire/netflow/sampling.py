"""How many packets stand for each that was looked at: what option records say, and what flows go by.

Promises: a rate is at least 1; samplers are told apart by samplerId (v9) or selectorId (RFC 5477), and what names none
holds for flows that name none. Refuses: guessing one sampler's rate for another's flows.
"""

from collections.abc import Callable, Sequence
from typing import Any

from ndagent.wire.netflow.elements import IANA
from ndagent.wire.netflow.parts import Context
from ndagent.wire.netflow.template import Records, Template

MAX_RATE = 2**32
"""More is a mistake, and would make numbers that no receiver takes."""
_SAMPLERS = (48, 302)  # samplerId, selectorId
_INTERVALS = (34, 50)  # samplingInterval (v5, v9), samplerRandomInterval: one out of so many
_SAYING = (*_INTERVALS, 305, 306, 309, 310, 311)


def rates_of(
    template: Template, columns: Sequence[Sequence[Any]], count: int, context: Context
) -> Sequence[int] | None:
    """The rate of each flow; None where none was sampled."""
    said = _said(template, columns)
    if said is None:
        usual = context.rates.get(None, context.rate)
        at = next((template.places[IANA, one] for one in _SAMPLERS if (IANA, one) in template.places), None)
        if at is None or not context.rates:
            return None if usual == 1 else [usual] * count
        said = [context.rates.get(sampler, usual) for sampler in columns[at]]
    return None if said.count(1) == count else said


def rate_of_all(template: Template, context: Context) -> int | None:
    """What `rates_of` says where it is one rate, whatever the records are; None where that depends on them."""
    of_records = any((IANA, one) in template.places for one in _SAYING)
    of_samplers = bool(context.rates) and any((IANA, one) in template.places for one in _SAMPLERS)
    return None if of_records or of_samplers else context.rates.get(None, context.rate)


def learn(template: Template, records: Records) -> dict[int | None, int]:
    """Rates by sampler that option records tell; empty where they tell of other things."""
    said = _said(template, records.columns)
    if said is None:
        return {}
    at = next((template.places[IANA, one] for one in _SAMPLERS if (IANA, one) in template.places), None)
    samplers: Sequence[Any] = [None] * len(said) if at is None else records.columns[at]
    return dict(zip(samplers, said, strict=True))


def _said(template: Template, columns: Sequence[Sequence[Any]]) -> list[int] | None:
    """What the records themselves say."""
    places = template.places

    def column(number: int) -> Sequence[Any] | None:
        at = places.get((IANA, number))
        return None if at is None else columns[at]

    interval, space = column(305), column(306)  # RFC 5477 §8.2.2: so many in a row, then so many not
    if interval is not None and space is not None:
        return _rates(lambda taken, left: (taken + left) / taken, interval, space)
    size, population = column(309), column(310)
    if size is not None and population is not None:
        return _rates(lambda taken, all_of: all_of / taken, size, population)
    probability = column(311)
    if probability is not None:
        return _rates(lambda share: 1 / share, probability)
    plain = next((found for number in _INTERVALS if (found := column(number)) is not None), interval)
    return None if plain is None else _rates(lambda every: every, plain)


def _rates(how: Callable[..., float], *columns: Sequence[Any]) -> list[int]:
    found = []
    for values in zip(*columns, strict=True):
        try:
            rate = how(*values)
            found.append(round(rate) if 1 <= rate <= MAX_RATE else 1)
        except ZeroDivisionError:  # nothing was looked at, they say, and yet there are flows
            found.append(1)
    return found
