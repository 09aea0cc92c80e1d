"""Debian's changelog, from CHANGELOG.md: the same words, in the form that Debian's tools read (deb-changelog(5))."""

import re
import textwrap
from datetime import UTC, datetime
from email.utils import format_datetime

_RELEASE = re.compile(r"^## (?P<version>\d\S*)(?: \((?P<date>[^)]*)\))?$", re.MULTILINE)
_ITEM = re.compile(r"^- (.+?)(?=^- |^\S|\Z)", re.MULTILINE | re.DOTALL)


def debian_changelog(markdown: str, *, package: str, revision: str, maintainer: str, epoch: int) -> str:
    """One entry per release, the newest first. A release without a date of its own (`unreleased`) gets `epoch`.

    Raises ValueError for a text without releases.
    """
    found = list(_RELEASE.finditer(markdown))
    if not found:
        raise ValueError("CHANGELOG.md has no line such as `## 1.0.0 (2026-01-31)`")
    ends = [*(one.start() for one in found[1:]), len(markdown)]
    entries = []
    for release, end in zip(found, ends, strict=True):
        items = [_item(text) for text in _ITEM.findall(markdown[release.end() : end])]
        body = "\n".join(items or ["  * No change is listed."])
        head = f"{package} ({release['version']}-{revision}) stable; urgency=medium"
        entries.append(f"{head}\n\n{body}\n\n -- {maintainer}  {_date(release['date'], epoch)}\n")
    return "\n".join(entries)


def _item(text: str) -> str:
    words = " ".join(text.replace("**", "").replace("`", "").split())
    return textwrap.fill(words, width=78, initial_indent="  * ", subsequent_indent="    ")


def _date(said: str | None, epoch: int) -> str:
    try:
        when = datetime.fromisoformat(said or "").replace(tzinfo=UTC)
    except ValueError:
        when = datetime.fromtimestamp(epoch, UTC)
    return format_datetime(when)
