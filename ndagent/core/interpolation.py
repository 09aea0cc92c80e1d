"""Environment variables and files inside configuration values: `${VAR}`, `${VAR:-default}`, `${file:PATH}`, `$$`.

Promises: what comes out of a variable or a file is text and is never looked at again (no second round, no YAML in it);
a missing one is an error that names it; no error shows a value. Refuses: other shell syntax, so that a typo cannot
pass as text, and files that are not small regular UTF-8 files.
"""

import re
from collections.abc import Mapping
from pathlib import Path

MAX_FILE_BYTES = 64 * 1024
MAX_VALUE_CHARACTERS = 256 * 1024

_EXPRESSION = re.compile(
    r"\$(?:(?P<dollar>\$)"
    r"|\{file:(?!-)(?P<file>[^{}]+)\}"
    r"|\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?::-(?P<default>[^}]*))?\}"
    r"|(?P<broken>\{))"
)


class InterpolationError(ValueError):
    """A variable or file that cannot be used; the message names it and never shows what is in it."""


def interpolate(text: str, *, directory: Path, env: Mapping[str, str]) -> tuple[str, bool]:
    """The text with its expressions replaced, and whether anything came from outside.

    Relative `${file:…}` paths are taken from `directory`. As in a shell, an empty variable counts as unset for `:-`.
    Raises InterpolationError.
    """
    pieces, end, foreign, length = [], 0, False, 0
    for match in _EXPRESSION.finditer(text):
        piece = _value(match, directory, env)
        pieces += [text[end : match.start()], piece]
        end, length = match.end(), length + len(piece)
        foreign = foreign or match["dollar"] is None
        if length > MAX_VALUE_CHARACTERS:
            raise InterpolationError(f"becomes longer than {MAX_VALUE_CHARACTERS} characters")
    return "".join([*pieces, text[end:]]), foreign


def without_values(text: str) -> str:
    """The expressions as written, with defaults hidden: fit for an error message."""
    return _EXPRESSION.sub(lambda match: f"${{{match['name']}:-…}}" if match["default"] else match[0], text)


def _value(match: re.Match[str], directory: Path, env: Mapping[str, str]) -> str:
    if match["dollar"]:
        return "$"
    if match["file"]:
        return _file(directory / match["file"])
    if match["broken"]:
        raise InterpolationError("'${' starts ${VAR}, ${VAR:-default} or ${file:PATH}; write $${ for a plain '${'")
    name, default = match["name"], match["default"]
    value = env.get(name)
    if default is not None and not value:
        return default
    if value is None:
        raise InterpolationError(f"environment variable {name} is not set; set it, or write ${{{name}:-default}}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise InterpolationError(f"environment variable {name} is not UTF-8")
    return value


def _file(path: Path) -> str:
    """The file's text without its last line ending (every editor and `echo` adds one)."""
    try:
        if not path.is_file():
            raise InterpolationError(f"{path} is not a file" if path.exists() else f"{path} does not exist")
        with path.open("rb") as stream:
            content = stream.read(MAX_FILE_BYTES + 1)
        text = content.decode()
    except OSError as error:
        raise InterpolationError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        if isinstance(error, InterpolationError):
            raise
        raise InterpolationError(f"{path} is not UTF-8 text, or not a path") from None
    if len(content) > MAX_FILE_BYTES:
        raise InterpolationError(f"{path} is larger than {MAX_FILE_BYTES} bytes")
    return text.removesuffix("\n").removesuffix("\r")
