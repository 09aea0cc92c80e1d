"""Where an event's line goes: the path template of the `file` output.

Promises: a template is proved when the configuration is read; whatever a message claims as its host, the path stays one
component wide and below the template's own directories, and never names a hidden file.
Refuses: touching the disk.
"""

import re
from string import Formatter

PLACEHOLDERS = ("stream", "host", "year", "month", "day", "hour")
_DATE = frozenset({"year", "month", "day", "hour"})
_UNSAFE = re.compile(r"[^A-Za-z0-9._:-]")
_ROTATED = re.compile(r"-(?=\d{8}T\d{6}\.)")
_MAX_HOST_LENGTH = 128
"""A file name has 255 bytes; the rest is for the template's own text, the time of rotation and the suffix."""


def check_template(text: str) -> str:
    """The template itself; raises ValueError that says what is wrong and what may stand in braces."""
    allowed = " ".join(f"{{{name}}}" for name in PLACEHOLDERS)
    try:
        fields = [(name, spec, conversion) for _, name, spec, conversion in Formatter().parse(text) if name is not None]
    except ValueError as error:
        raise ValueError(f"{text!r}: {error}; a path may hold {allowed}") from error
    for name, spec, conversion in fields:
        if name not in PLACEHOLDERS or spec or conversion:
            raise ValueError(f"{text!r}: unknown placeholder {{{name}}}; a path may hold {allowed}")
    if "\0" in text or text.rpartition("/")[2] in ("", ".", ".."):
        raise ValueError(f"{text!r} names no file; write something like /var/log/ndcollector/{{stream}}.ndjson")
    return text


def safe_name(text: str) -> str:
    """Text from a message as (part of) one path component; empty or nothing but dots becomes `unknown`."""
    name = _UNSAFE.sub("_", text[:_MAX_HOST_LENGTH]).replace("..", "__")
    name = _ROTATED.sub("_", name)  # a host must not pass for another host's rotated file (see file_rotation.py)
    if name.startswith("."):
        name = "_" + name[1:]
    return name if name.strip("_") else "unknown"


class PathTemplate:
    """A checked template, cheap to expand: what does not change within a stream and an hour is kept by the caller."""

    def __init__(self, text: str) -> None:
        self._text = check_template(text)
        names = {name for _, name, _, _ in Formatter().parse(text) if name}
        self.by_host = "host" in names
        self.by_date = not names.isdisjoint(_DATE)

    def expand(self, *, stream: str, host: str, hour: str) -> str:
        """The path for a stream, a host as the message gave it, and an hour such as `2026-07-28T14` (UTC)."""
        return self._text.format(
            stream=safe_name(stream),
            host=safe_name(host),
            year=hour[:4],
            month=hour[5:7],
            day=hour[8:10],
            hour=hour[11:13],
        )
