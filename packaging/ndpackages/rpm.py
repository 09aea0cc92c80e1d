"""A tree as an rpm package, by nfpm, which writes rpm's format without rpm.

Promises: conffiles are `noreplace`; the C library's floor is asked for by symbol version, as rpm does. Refuses: a
weaker compression (zstd needs rpm 4.14, which is older than any C library that would do).
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ndpackages import scripts
from ndpackages.layout import MAINTAINER, ZSH, Tree

_ZSH = "usr/share/zsh/site-functions"
_DEBIAN_ONLY = ("DEBIAN", "usr/share/lintian")


def pack(tree: Tree, output: Path) -> None:
    """Write the package. Raises CalledProcessError."""
    product = tree.product
    work = Path("/made/rpm", f"{product.name}-{tree.release}")
    source = tree.source / "packaging/rpm"
    written = scripts.write_scripts(product.name, "rpm", source=source, target=work)
    depends = [f"libc.so.6(GLIBC_{tree.floor})(64bit)", "/usr/share/zoneinfo/UTC"]  # by file: packages' names differ
    depends += ["/usr/sbin/useradd"] if product.has_user else []
    settings = {
        "name": product.name, "arch": tree.architecture, "platform": "linux", "version": tree.version,
        "release": tree.release, "maintainer": MAINTAINER, "license": "Apache-2.0", "depends": depends,
        "description": f"{product.summary}\n{product.description}", "mtime": _time(tree.epoch), "scripts": written,
        "rpm": {"compression": "zstd:19", "buildhost": "localhost", "summary": product.summary},
        "contents": list(_contents(tree)),
    }  # fmt: skip
    config = work / "nfpm.json"  # JSON is YAML
    config.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    nfpm = str(Path(sys.executable).with_name("nfpm"))
    command = [nfpm, "package", "-f", str(config), "-p", "rpm", "-t", str(output)]
    subprocess.run(command, check=True, cwd=work, stdout=subprocess.DEVNULL)


def _contents(tree: Tree) -> Iterator[dict[str, Any]]:
    """One entry per file, and the directories that are the package's own: what rpm does not list it does not remove."""
    owner = {"owner": "root", "group": tree.product.name if tree.product.has_user else "root"}
    for file in sorted(tree.path.rglob("*")):
        relative = str(file.relative_to(tree.path))
        is_ours = relative.startswith(f"etc/{tree.product.name}")
        if relative.startswith(_DEBIAN_ONLY):
            continue
        entry: dict[str, Any] = {"src": str(file), "dst": f"/{relative.replace(ZSH, _ZSH)}"}
        if file.is_symlink():
            yield entry | {"src": str(file.readlink()), "type": "symlink"}
        elif file.is_dir() and tree.product.name in file.relative_to(tree.path).parts:
            its = owner if is_ours else {}
            yield {"dst": entry["dst"], "type": "dir", "file_info": {"mode": _mode(file), **its}}
        elif file.is_file() and is_ours:
            yield entry | {"type": "config|noreplace", "file_info": {"mode": _mode(file), **owner}}
        elif file.is_file():
            yield entry | {"file_info": {"mode": _mode(file)}}


def _mode(file: Path) -> int:
    return file.stat().st_mode & 0o7777


def _time(epoch: int) -> str:
    return datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
