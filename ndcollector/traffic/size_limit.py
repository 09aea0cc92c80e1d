"""How large a body the far side takes: what is configured, until it says 413, and then what was learned from that.

Promises: after a 413 at n bytes batches are cut to n / 2 before they are sent, so that not every later batch is refused
first; once an hour the configured size is tried again, because somebody may have raised the limit. Pure: time comes in.
"""

TRY_AGAIN_SECONDS = 3600.0

LEAST_BYTES = 16 * 1024
"""Learned limits end here: one odd 413 must not send every event alone. What is larger still is halved each time."""


class SizeLimit:
    """Of one output."""

    def __init__(self, configured_bytes: int) -> None:
        self._configured_bytes = configured_bytes
        self._learned_bytes: int | None = None
        self._learned_at = 0.0

    def most_bytes(self, now: float) -> int:
        """The largest body to send now."""
        if self._learned_bytes is not None and now - self._learned_at >= TRY_AGAIN_SECONDS:
            self._learned_bytes = None
        return self._configured_bytes if self._learned_bytes is None else self._learned_bytes

    def refused(self, size_bytes: int, now: float) -> int:
        """A body of this size was too large; returns what is the most from now on."""
        self._learned_bytes = min(max(size_bytes // 2, LEAST_BYTES), self.most_bytes(now))
        self._learned_at = now
        return self._learned_bytes
