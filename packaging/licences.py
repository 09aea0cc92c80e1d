"""Writes THIRD_PARTY_LICENSES: what a package carries along, under which licence, with the text. `licences.py ndagent`.

Promises: every distribution of bundle.py and the interpreter is in it, with each licence, notice and author file that
it ships; one that ships none stands there with what it declares, and says so. Refuses (exit status 1): one that neither
declares a licence nor has a text.
"""

import re
import sys
import sysconfig
from importlib.metadata import Distribution
from pathlib import Path

from bundle import PROJECT, bundled, other_parts
from sbom import declared

_NAME = re.compile(r"(?i)^(licen[cs]e|copying|notice|copyright|authors)([-._].*)?$")
_RULE = "=" * 80


def texts(dist: Distribution) -> dict[str, str]:
    """Licence files by their path in the distribution; the same text once."""
    found: dict[str, str] = {}
    for file in sorted(dist.files or (), key=str):
        if _NAME.match(file.name) and ".dist-info" in str(file):
            text = Path(str(file.locate())).read_text(encoding="utf-8", errors="replace").strip()
            if text and text not in found.values():
                found[str(file)] = text
    return found


def python_licence() -> str:
    """CPython's own, where this interpreter has it."""
    places = [Path(sysconfig.get_path("stdlib")) / "LICENSE.txt", Path("/usr/share/doc/python3.11/copyright")]
    return next((place.read_text(encoding="utf-8", errors="replace").strip() for place in places if place.exists()), "")


def document(program: str) -> str:
    """The whole text; raises LookupError for a part without any licence."""
    entries = []
    for name, one in bundled(program).items():
        if name == PROJECT:
            continue
        licence, found = declared(one.distribution), texts(one.distribution)
        if not licence and not found:
            raise LookupError(f"{name} {one.distribution.version} neither declares a licence nor ships its text")
        body = "\n\n".join(f"--- {path}\n\n{text}" for path, text in found.items())
        head = f"{name} {one.distribution.version}\nLicence: {licence or 'see the text'}"
        entries.append(f"{head}\n\n{body or '(the distribution ships no text)'}")
    for part in other_parts():
        text = python_licence() if part.name == "CPython" else ""
        entries.append(f"{part.name} {part.version}\nLicence: {part.licence}\n\n{text or '(see the licence named)'}")
    intro = f"{program} carries along the software below. Its own licence is Apache-2.0; see LICENSE."
    return f"\n\n{_RULE}\n".join([intro, *entries]) + "\n"


def main() -> int:
    """Print it."""
    try:
        text = document(sys.argv[1])
    except LookupError as error:
        print(f"licences: {error}", file=sys.stderr)
        return 1
    sys.stdout.write(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
