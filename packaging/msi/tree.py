"""The staged files as WiX source: a directory for each directory, a component for each file, names made of paths.

wixl-heat would write the same with identifiers and GUIDs by chance. Windows Installer takes a component for the same
one as long as its GUID is: here, as long as its file has the same path.
"""

import uuid
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import quoteattr

_NAMESPACE = uuid.UUID("f1a1b4de-8a39-4e0c-a5a0-0f6b5a3f5a11")
_INSIDE = {"": "INSTALLDIR", "python": "RUNTIMEDIR"}
"""Directories that main.wxs has already."""


def fragment(root: Path, *, leave_out: frozenset[str]) -> str:
    """The source of a component group `Files` with everything below root but these paths."""
    components: list[str] = []
    lines = list(_directory(root, "", leave_out, components))
    references = "".join(f"<ComponentRef Id={quoteattr(name)}/>\n" for name in components)
    group = f"<Fragment><ComponentGroup Id='Files'>\n{references}</ComponentGroup></Fragment>\n"
    body = "\n".join(lines)
    return f"<Wix xmlns='http://schemas.microsoft.com/wix/2006/wi'>\n<Fragment>\n{body}\n</Fragment>\n{group}</Wix>\n"


def _directory(root: Path, inside: str, leave_out: frozenset[str], components: list[str]) -> Iterator[str]:
    entries = sorted((root / inside).iterdir(), key=lambda path: path.name)
    below = []
    yield f"<DirectoryRef Id='{_INSIDE.get(inside) or _id('d', inside)}'>"
    for entry in entries:
        path = f"{inside}/{entry.name}".removeprefix("/")
        if entry.is_dir():
            below.append(path)
            if path not in _INSIDE:
                yield f"<Directory Id='{_id('d', path)}' Name={quoteattr(entry.name)}/>"
        elif path not in leave_out:
            components.append(_id("c", path))
            yield f"<Component Id='{components[-1]}' Guid='{uuid.uuid5(_NAMESPACE, path)}' Win64='yes'>"
            yield f"<File Id='{_id('f', path)}' Source={quoteattr('stage/' + path)} KeyPath='yes'/></Component>"
    yield "</DirectoryRef>"
    for path in below:
        yield from _directory(root, path, leave_out, components)


def _id(kind: str, path: str) -> str:
    return kind + uuid.uuid5(_NAMESPACE, path).hex
