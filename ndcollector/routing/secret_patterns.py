r"""The named patterns: how card numbers, passwords, keys, tokens and addresses look in a text.

    name        what it finds
    card_number 13 to 19 digits with an issuer's beginning and the right check digit (Luhn, ISO/IEC 7812-1), in one
                piece or in groups of three and more with single spaces or hyphens between
    email       local@host.tld
    secret      all of: password, bearer_token, aws_key, access_token, jwt, private_key, url_password, password_hash

Patterns that end in one of BARE_ENDINGS find where a value without quotes begins; `end_of_bare` says where it ends. Of
a pattern with a group named `secret`, (?P<secret>…), only that group is a find: `password=` stays to be read.
`hint` is what every text with a find has, in plain characters that no JSON escapes: what has no hint need not be read.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

Span = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Named:
    """RE2 patterns of one kind."""

    hint: str
    patterns: tuple[str, ...]


_KEY = "(?:access|api|auth|encryption|master|private|secret|session|shared|signing)[_-]?key"
_STRONG = rf"password|passwd|passphrase|passcode|secret|token|credential|{_KEY}"
_WEAK = "pass|psk|community"
_BEFORE_WEAK = r"\b|_|db|user|my|login|root|admin|ldap|smtp|ssh"
_WORD = rf"(?:{_STRONG}|(?:{_BEFORE_WEAK})(?:{_WEAK}))(?:[_-]?(?:confirmation|value|text|[0-9]+))?"
_CLOSED = r"""(?:["'\]]|%5D)?"""
_IS = r"\s*(?:=>|:=|=|:|%3D)\s*"
_ELEMENT = rf"<(?:[\w.-]+:)?[\w.-]*?{_WORD}(?:\s[^<>]*)?>\s*"
_OPTION = r"--?(?:[a-z0-9]+[_-])*(?:password|passwd|pass|secret|token|api[_-]?key)\s+"
_BARE = r"""(?P<secret>[^\s"'\\&>])"""
_BARE_NO_PATH = r"""(?P<secret>[^\s"'\\&>/])"""
BARE_ENDINGS = (_BARE, _BARE_NO_PATH)
_HOST = r"[\pL\pN](?:[\pL\pN-]*[\pL\pN])?(?:\.[\pL\pN-]+)*\.\pL{2,}"

CARD_NUMBER = "card_number"
CARD_RUN = r"[0-9](?:[ -]?[0-9]){12,}"
PASSWORD = "password"  # noqa: S105 - a pattern's name

NAMED: Mapping[str, Named] = {
    CARD_NUMBER: Named(CARD_RUN, (CARD_RUN,)),
    "email": Named(rf"[\pL\pN._%+'-]@{_HOST}", (rf"[\pL\pN._%+'-]+@{_HOST}",)),
    PASSWORD: Named(
        rf"(?i:{_STRONG}|{_WEAK}|pwd)",
        (
            rf"""(?is)(?:{_WORD}|\bpwd){_CLOSED}{_IS}"(?P<secret>(?:[^"\\]|\\.)+)""",
            rf"""(?is)(?:{_WORD}|\bpwd){_CLOSED}{_IS}'(?P<secret>(?:[^'\\]|\\.)+)""",
            rf"""(?is)(?:{_WORD}|\bpwd)\\["']{_IS}\\["'](?P<secret>(?:[^"'\\]|\\[^"'])+)""",
            rf"""(?i){_WORD}{_CLOSED}{_IS}{_BARE}""",
            rf"""(?i)(?:\b|_)pwd{_CLOSED}{_IS}{_BARE_NO_PATH}""",  # sudo's PWD=/home/… is a directory
            rf"""(?i){_OPTION}["']?{_BARE}""",
            rf"(?i){_ELEMENT}(?P<secret>[^<\s][^<]*)",
            rf"(?is){_ELEMENT}<!\[CDATA\[(?P<secret>.+?)(?:\]\]>|\z)",
            r"(?i)\b(?:password|secret)\s+[0-9]\s+(?P<secret>\S+)",  # network devices: the digit says how it is encoded
        ),
    ),
    "bearer_token": Named(
        "(?i:bearer|authorization)",
        (
            r"(?i)\bbearer\s+(?P<secret>[a-z0-9._~+/-]{8,}=*)",
            r"(?i)authorization\\?[\"']?\s*[:=]\s*\\?[\"']?(?:[a-z-]+\s+)?(?P<secret>[^\s\"'\\,;]+)",
        ),
    ),
    "aws_key": Named(
        "A[A-Z0-9]{19}", (r"\b(?:A3T[A-Z0-9]|AKIA|ASIA|ABIA|ACCA|AGPA|AIDA|AIPA|ANPA|ANVA|AROA)[A-Z0-9]{16}\b",)
    ),
    "access_token": Named(
        r"gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|AIza|sk-|[sr]k_live_|npm_|SG\.|hvs\.",
        (
            r"\b(?:gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}|xox[abeprs]-[\w-]{8,})",
            r"\b(?:sk-[\w-]{20,}|[sr]k_live_\w{10,}|npm_\w{30,}|hvs\.[\w-]{20,}|AIza[\w-]{30,})",
            r"\bSG\.[\w-]{16,}\.[\w-]{16,}",
        ),
    ),
    "jwt": Named("eyJ", (r"\beyJ[\w-]{5,}\.[\w-]{5,}(?:\.[\w-]*)?",)),
    "private_key": Named(
        "PRIVATE KEY",
        (r"-----BEGIN [A-Z ]*PRIVATE KEY[A-Z ]*-----(?s:.*?)(?:-----END [A-Z ]*PRIVATE KEY[A-Z ]*-----|\z)",),
    ),
    "url_password": Named(
        r":\\?/\\?/[^\s/:@]*:[^\s/]+@", (r"(?i)[a-z][a-z0-9+.-]*:\\?/\\?/[^\s/:@]*:(?P<secret>[^\s/]+)@",)
    ),
    "password_hash": Named(r"\$[0-9a-z]{1,2}\$", (r"\$(?:[1567y]|2[abxy]?|gy)\$[./A-Za-z0-9$=,+-]{16,}",)),
}
GROUPS: Mapping[str, tuple[str, ...]] = {
    "secret": tuple(name for name in NAMED if name not in (CARD_NUMBER, "email")),
}

_SECRET_KEY = re.compile(
    rf"(?:{_STRONG}|(?:^|[_.-])(?:{_WEAK}|pwd))(?:[_-]?confirmation|[0-9]+)?$", re.IGNORECASE
)


def names_a_secret(key: str) -> bool:
    """Whether a field of this name holds a secret, whatever its value looks like."""
    return _SECRET_KEY.search(key[-64:]) is not None


# A value without quotes ends at a space or &, before a comma or semicolon that another key or a space follows (a
# password may hold either), and at the quote that closes what stands around the whole pair.
_END_OF_BARE = re.compile(
    rb"""[\s&] | ["']?[,;](?=["']?[\w.@-]{1,64}["']?[=:]|\s|\Z) | ["'](?=[,;:)}\]\s]|\Z)""", re.VERBOSE
)


def end_of_bare(text: bytes, start: int) -> int:
    """Where the value that begins there ends."""
    found = _END_OF_BARE.search(text, start + 1)
    return found.start() if found else len(text)


# ---- card numbers


class _Issuer(NamedTuple):
    """Numbers that begin with `low` to `high` have these lengths (longest first)."""

    low: int
    high: int
    lengths: tuple[int, ...]


_ISSUERS = (  # by the first four digits
    _Issuer(2200, 2204, (19, 18, 17, 16)), _Issuer(2221, 2720, (16,)), _Issuer(3000, 3059, (19, 16, 14)),
    _Issuer(3095, 3095, (19, 16, 14)), _Issuer(3400, 3499, (15,)), _Issuer(3528, 3589, (19, 18, 17, 16)),
    _Issuer(3600, 3699, (19, 16, 14)), _Issuer(3700, 3799, (15,)), _Issuer(3800, 3999, (19, 16, 14)),
    _Issuer(4000, 4999, (19, 16, 13)), _Issuer(5000, 5099, (19, 18, 17, 16, 15, 14, 13)), _Issuer(5100, 5599, (16,)),
    _Issuer(5600, 5899, (19, 18, 17, 16, 15, 14, 13)), _Issuer(6000, 6999, (19, 18, 17, 16, 15, 14, 13)),
)  # fmt: skip
_DOUBLED = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
_SHORTEST_GROUP = 3


def cards_in(run: bytes, *, after_decimal_point: bool) -> Iterator[Span]:
    """Where in a run of digits with single separators card numbers stand, from the left, none inside another.

    Linear: each group of digits is tried as a beginning once, with at most seven lengths.
    """
    groups = [found.span() for found in re.finditer(rb"[0-9]+", run)]
    digits = [one - 48 for one in run if one > 47]
    counts = accumulate(end - start for start, end in groups)
    ends = {count: number for number, count in enumerate(counts)}
    first, free_from = 0, 0
    for number, (start, end) in enumerate(groups):
        skipped = number == 0 and after_decimal_point
        if start >= free_from and not skipped and end - start >= _SHORTEST_GROUP:
            for length in _lengths(digits[first : first + 4]):
                last = ends.get(first + length)
                if last is None or not _are_grouped(groups, number, last):
                    continue
                if luhn(digits[first : first + length]):
                    free_from = groups[last][1]
                    yield start, free_from
                    break
        first += end - start


def _lengths(beginning: list[int]) -> tuple[int, ...]:
    number = int("".join(map(str, beginning)).ljust(4, "0"))
    return next((issuer.lengths for issuer in _ISSUERS if issuer.low <= number <= issuer.high), ())


def _are_grouped(groups: list[Span], first: int, last: int) -> bool:
    """Whether the groups are as long as people write them; the last may be shorter."""
    return all(groups[number][1] - groups[number][0] >= _SHORTEST_GROUP for number in range(first, last))


def luhn(digits: list[int]) -> bool:
    """Whether the last digit is the check digit of the others, ISO/IEC 7812-1 annex B."""
    return (sum(digits[-1::-2]) + sum(_DOUBLED[one] for one in digits[-2::-2])) % 10 == 0
