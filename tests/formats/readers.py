"""CEF and LEEF read back by their specifications, character by character; nothing of the product's code."""

import re
from itertools import zip_longest


def read_cef(line: str) -> tuple[list[str], dict[str, str]]:
    """The seven header fields behind CEF:, and the extension."""
    assert line.startswith("CEF:")
    header, rest = [""], ""
    position = 4
    while True:
        character = line[position]
        if character == "\\":
            assert line[position + 1] in "\\|", "only these are escaped in a header"
            header[-1] += line[position + 1]
            position += 2
            continue
        position += 1
        if character != "|":
            header[-1] += character
        elif len(header) == 7:
            rest = line[position:]
            return header, _cef_extension(rest)
        else:
            header.append("")


def _cef_extension(text: str) -> dict[str, str]:
    """A key is what stands between a space and an `=` that no backslash is before."""
    found: dict[str, str] = {}
    starts = list(re.finditer(r"(?:(?<=^)|(?<= ))([A-Za-z0-9]+)=", text))
    starts = [one for one in starts if _is_bare(text, one.end() - 1)]
    for one, following in zip_longest(starts, starts[1:]):
        value = text[one.end() : following.start() - 1 if following else len(text)]
        assert one[1] not in found, "a key comes once"
        found[one[1]] = _unescape_cef(value)
    return found


def _is_bare(text: str, position: int) -> bool:
    backslashes = len(text[:position]) - len(text[:position].rstrip("\\"))
    return backslashes % 2 == 0


def _unescape_cef(value: str) -> str:
    result, position = "", 0
    while position < len(value):
        character = value[position]
        if character == "\\":
            position += 1
            result += {"\\": "\\", "=": "=", "n": "\n", "r": "\r"}[value[position]]
        else:
            assert character not in "=\n\r"
            result += character
        position += 1
    return result


def read_leef(line: str) -> tuple[list[str], dict[str, str]]:
    """The five header fields behind LEEF:, and the attributes."""
    assert line.startswith("LEEF:2.0|")
    *header, delimiter, rest = line[5:].split("|", 6)
    character = chr(int(delimiter[1:], 16)) if re.fullmatch("x[0-9a-f]{2}", delimiter) else delimiter
    found: dict[str, str] = {}
    for pair in rest.split(character) if rest else ():
        key, equals, value = pair.partition("=")
        assert equals, pair
        assert key not in found, "a key comes once"
        found[key] = value
    return header, found
