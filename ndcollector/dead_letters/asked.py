"""What `ndcollector dlq` is asked about: a state directory, an output's letters in it, and which of them.

Promises: only reads. Letters that a replay under way has sent are none any more, though they are still in the file.
"""

import argparse
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from ndagent.core.deliveries import DIRECTORY
from ndagent.core.yaml_file import ConfigError
from ndagent.wire.where import WhereError, compile_where
from ndcollector.config import CollectorConfig, load
from ndcollector.dead_letters.letters import SUFFIX, Letter, Wanted, letter_time, letters
from ndcollector.dead_letters.progress import Progress
from ndcollector.dead_letters.progress import load as load_progress
from ndcollector.spool_command import DEFAULT_SOCKET

_AGE = re.compile(r"(\d+)([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


class Failed(Exception):
    """In words for a person; exit status 1."""


def read_time(text: str) -> str:
    """A time, or an age such as 12h, as letters have it; raises argparse's error."""
    age = _AGE.fullmatch(text)
    try:
        if age is not None:
            return letter_time(datetime.now(UTC) - timedelta(**{_UNITS[age[2]]: int(age[1])}))
        return letter_time(datetime.fromisoformat(text))
    except (ValueError, OverflowError):
        wanted = "a time such as 2026-03-01T12:00:00Z, nor an age such as 12h"
        raise argparse.ArgumentTypeError(f"{text!r} is neither {wanted}") from None


class LetterFile(NamedTuple):
    """One output's letters, and what a replay under way has sent of them already."""

    output: str
    path: Path
    progress: Progress | None

    def letters(self, wanted: Wanted, *, end: int | None = None) -> Iterator[Letter | None]:
        """The wanted ones that have not left, and None for damage where everything is wanted."""
        has_left = Wanted.read(self.progress.wanted) if self.progress is not None else None
        at = self.progress.at if self.progress is not None else 0
        for offset, letter in letters(self.path, end=end):
            if has_left is not None and offset < at and has_left(letter):
                continue
            if wanted(letter) or (letter is None and wanted == Wanted()):
                yield letter


def configured(args: argparse.Namespace) -> CollectorConfig:
    try:
        return load(args.config)
    except ConfigError as error:
        raise Failed(f"{error}\n(--state-dir DIR needs no configuration)") from error


def directory_of(args: argparse.Namespace) -> Path:
    state_dir: Path = args.state_dir or configured(args).state_dir
    return state_dir / DIRECTORY


def file_of(args: argparse.Namespace) -> LetterFile:
    path = directory_of(args) / f"{args.output}{SUFFIX}"
    if "/" in args.output or not path.exists():
        raise Failed(f"there are no dead letters of {args.output!r}; ndcollector dlq ls shows what there is")
    return LetterFile(args.output, path, load_progress(path))


def socket_of(args: argparse.Namespace) -> Path:
    if args.socket is not None or args.state_dir is not None:
        return args.socket or DEFAULT_SOCKET
    path: Path = configured(args).admin.socket
    return path


def wanted_of(args: argparse.Namespace) -> Wanted:
    try:
        where = None if args.where is None else compile_where(args.where)
    except WhereError as error:
        raise Failed(f"--where: {error}") from error
    since, before = getattr(args, "since", None), getattr(args, "before", None)
    return Wanted(reason=args.reason, where=where, since=since, before=before)
