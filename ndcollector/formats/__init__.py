"""How an event looks to the far side: ECS as it is, flat JSON, CEF, LEEF, RFC 5424, or the message as it came.

A formatter makes of a batch of ECS lines the same batch with other lines (`EventBatch.format` says which): as many of
them, in the same order, each ending in its only LF. It is called in threads, and is a pure function.
"""

from collections.abc import Callable

from ndagent.wire.record import EventBatch

Formatter = Callable[[EventBatch], EventBatch]
