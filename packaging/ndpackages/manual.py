"""A man page from the command line's own parser: what the program does not take is not in it, and the other way round.

Promises: every command, nested ones too, every option with its help and default; man(7) that groff reads without a
warning. Refuses: prose that the parser does not have, but for the closing sections given.
"""

import argparse
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime


def man_page(parser: argparse.ArgumentParser, *, version: str, epoch: int, closing: Mapping[str, str]) -> str:
    """Section 1 of the manual; `closing` are sections at the end, by title."""
    date = datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%d")
    name = parser.prog
    lines = [
        f'.TH {name.upper()} 1 {date} "{name} {version}" "Neurodefender"',
        ".SH NAME", f"{name} \\- {_text(_first_lower(parser.description or ''))}",
        ".SH SYNOPSIS", f".B {name}", ".I COMMAND", "[options]",
        ".SH COMMANDS",
    ]  # fmt: skip
    for path, command, about in _commands(parser):
        lines += [".SS " + _bold(" ".join(path)), _text(about or command.description or "")]
        lines += _arguments(command)
    for title, text in closing.items():
        lines += [f".SH {title}", *(_text(line) if line.strip() else ".PP" for line in text.strip().splitlines())]
    return "\n".join(line for line in lines if line) + "\n"


def _commands(
    parser: argparse.ArgumentParser, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser, str]]:
    """Each command that does something itself: its words, its parser, what the list of commands says about it."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way to walk a parser
        if not isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            continue
        about = {choice.dest: choice.help or "" for choice in action._choices_actions}  # noqa: SLF001
        for name, command in action.choices.items():
            if any(isinstance(one, argparse._SubParsersAction) for one in command._actions):  # noqa: SLF001
                yield from _commands(command, (*path, name))
            else:
                yield (*path, name), command, about.get(name, "")


def _arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    formatter = parser._get_formatter()  # noqa: SLF001 - it knows how `%(default)s` and metavars read
    for action in parser._actions:  # noqa: SLF001
        if action.help == argparse.SUPPRESS or isinstance(action, argparse._HelpAction):  # noqa: SLF001
            continue
        yield ".TP"
        yield _bold(formatter._format_action_invocation(action))  # noqa: SLF001
        yield _text(formatter._expand_help(action) if action.help else "")  # noqa: SLF001


def _bold(text: str) -> str:
    return f"\\fB{_text(text)}\\fR"


def _text(text: str) -> str:
    """With what is special to roff made plain; a line must not begin with a control character."""
    text = re.sub(r"\s+", " ", text).strip().replace("\\", "\\e").replace("-", "\\-")
    return f"\\&{text}" if text[:1] in {".", "'"} else text


def _first_lower(text: str) -> str:
    return text[:1].lower() + text[1:].rstrip(".")
