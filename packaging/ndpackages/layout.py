"""Which file goes where, and with which mode; deb.py and rpm.py pack it.

    /usr/lib/NAME, /usr/bin/NAME            the frozen program, and the link to it
    /etc/NAME/NAME.yaml                     a conffile, whose shipped text does not change between releases, so that no
                                            upgrade asks about it; conf.d beside it is the administrator's
    /usr/lib/systemd/system, …/catalog      units and explanations for `journalctl -x`, from systemd/
    /usr/share/man, doc, bash-completion, zsh

Promises: every file has the time of SOURCE_DATE_EPOCH and its mode. Refuses: to hold anything that changes while the
program runs (that is in /var/lib/NAME, which no package owns).
"""

import gzip
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import shtab

from ndagent import __version__
from ndpackages import manual, notices, sbom
from ndpackages.changelog import debian_changelog
from ndpackages.floor import glibc_floor
from ndpackages.freezing import Frozen
from ndpackages.products import Product

MAINTAINER = os.environ.get("ND_MAINTAINER", "Neurodefender maintainers <maintainers@neurodefender.example>")
_UNIT_KINDS = ("service", "socket", "slice", "target", "timer", "path")
_DOCUMENTS = ("README.md", "docs/*.md", "docs/*/*.md")
ZSH = "usr/share/zsh/vendor-completions"
"""Debian's place."""


@dataclass(frozen=True)
class Tree:
    """The files of a package as they will lie on disk, and what must be said about them."""

    product: Product
    path: Path
    version: str
    release: str
    floor: str  # the oldest C library
    source: Path
    epoch: int
    architecture: str  # as Debian calls it


def lay_out(product: Product, frozen: Frozen, source: Path, *, release: str, epoch: int) -> Tree:
    """Everything that is the same in both formats, in a directory of its own."""
    path = Path("/made/tree", f"{product.name}-{release}")
    shutil.copytree(frozen.tree, path / "usr/lib" / product.name, symlinks=True)
    _write_units(product, source, path)
    _write_catalogue(product, source, path)
    _write_manual(product, path, epoch)
    _write_documents(product, frozen, source, path, release=release, epoch=epoch)
    _write_completions(product, path)
    link = path / "usr/bin" / product.name
    link.parent.mkdir(parents=True)
    link.symlink_to(f"../lib/{product.name}/{product.name}")
    shutil.copy(source / "conf" / f"{product.name}.yaml", _parent(path / "etc" / product.name / f"{product.name}.yaml"))
    (path / "etc" / product.name / "conf.d").mkdir()
    _set_modes(product, path)
    _set_times(path, epoch)
    return Tree(
        product, path, version=__version__, release=release, floor=glibc_floor(frozen.tree), source=source,
        epoch=epoch, architecture=_architecture(),
    )  # fmt: skip


def _write_units(product: Product, source: Path, path: Path) -> None:
    """The product's units; one that names /usr/local/bin means a program installed by hand, and here means ours."""
    for kind in _UNIT_KINDS:
        for unit in sorted((source / "systemd").glob(f"{product.name}*.{kind}")):
            text = unit.read_text(encoding="utf-8").replace("/usr/local/bin/", "/usr/bin/")
            _write(path / "usr/lib/systemd/system" / unit.name, text)


def _write_catalogue(product: Product, source: Path, path: Path) -> None:
    for file in sorted((source / "systemd").glob(f"{product.name}*.catalog")):
        shutil.copy(file, _parent(path / "usr/lib/systemd/catalog" / file.name))


def _write_manual(product: Product, path: Path, epoch: int) -> None:
    closing = {
        "FILES": (
            f"/etc/{product.name}/{product.name}.yaml: the configuration; conf.d/*.yaml beside it is merged in.\n\n"
            f"/usr/share/doc/{product.name}/{product.name}.reference.yaml: every setting with its help and default.\n\n"
            f"/var/lib/{product.name}: state; the spool is there."
        ),
        "EXIT STATUS": "0 done, 1 a finding or a mistake in the configuration, 2 wrong usage.",
        "SEE ALSO": f"systemctl(1), journalctl(1); the chapters in /usr/share/doc/{product.name}.",
    }
    parser: Any = product.parser()
    text = manual.man_page(parser, version=__version__, epoch=epoch, closing=closing)
    _write_compressed(path / "usr/share/man/man1" / f"{product.name}.1.gz", text)


def _write_documents(
    product: Product, frozen: Frozen, source: Path, path: Path, *, release: str, epoch: int
) -> None:
    target = path / "usr/share/doc" / product.name
    for pattern in _DOCUMENTS:
        for file in sorted(source.glob(pattern)):
            shutil.copy(file, _parent(target / file.relative_to(source)))
    shutil.copy(source / "conf" / f"{product.name}.reference.yaml", target)
    if product.name == "ndcollector":
        shutil.copytree(source / "conf/examples", target / "examples")
    _write(target / "copyright", notices.copyright_file(frozen))
    _write_compressed(target / "third-party-notices.gz", notices.notices(frozen))
    _write(target / "sbom.cdx.json", _bill_of_materials(product, frozen, source, epoch))
    changes = (source / "CHANGELOG.md").read_text(encoding="utf-8")
    text = debian_changelog(changes, package=product.name, revision=release, maintainer=MAINTAINER, epoch=epoch)
    _write_compressed(target / "changelog.Debian.gz", text)
    overrides = source / "packaging/deb/lintian-overrides"
    _write(path / "usr/share/lintian/overrides" / product.name, overrides.read_text(encoding="utf-8"))


def _bill_of_materials(product: Product, frozen: Frozen, source: Path, epoch: int) -> str:
    found = notices.distributions(frozen)
    lock = sbom.locked((source / "packaging/requirements.lock").read_text(encoding="utf-8"))
    debian = sbom.debian_parts(notices.debian_versions(frozen.debian_packages), _architecture())
    return sbom.bill_of_materials(
        program=product.name, version=__version__, parts=[*sbom.python_parts(found, lock), *debian],
        needs=sbom.python_needs(found), epoch=epoch,
    )  # fmt: skip


def _write_completions(product: Product, path: Path) -> None:
    parser: Any = _with_files(product.parser())
    _write(path / "usr/share/bash-completion/completions" / product.name, shtab.complete(parser, "bash"))
    _write(path / ZSH / f"_{product.name}", shtab.complete(parser, "zsh"))


def _with_files(parser: Any) -> Any:
    """The parser, whose options that take a FILE or DIR now complete to one."""
    for action in parser._actions:  # noqa: SLF001 - argparse has no public way to walk a parser
        if str(action.metavar) in {"FILE", "DIR"}:
            action.complete = shtab.FILE if action.metavar == "FILE" else shtab.DIRECTORY
        for command in (action.choices or {}).values() if isinstance(action.choices, dict) else ():
            _with_files(command)
    return parser


def _architecture() -> str:
    return subprocess.run(["dpkg", "--print-architecture"], check=True, capture_output=True, text=True).stdout.strip()


def _parent(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write(path: Path, text: str) -> None:
    _parent(path).write_text(text, encoding="utf-8")


def _write_compressed(path: Path, text: str) -> None:
    _parent(path).write_bytes(gzip.compress(text.encode(), 9, mtime=0))


def _set_modes(product: Product, path: Path) -> None:
    """0755 for directories and the program, 0644 for the rest; the configuration is the product's own matter."""
    for file in path.rglob("*"):
        if not file.is_symlink():
            file.chmod(0o755 if file.is_dir() or file == path / "usr/lib" / product.name / product.name else 0o644)
    etc = path / "etc" / product.name
    for directory in (etc, etc / "conf.d"):
        directory.chmod(product.config_mode)
    (etc / f"{product.name}.yaml").chmod(product.config_mode & 0o666 | 0o200)


def _set_times(path: Path, epoch: int) -> None:
    for file in path.rglob("*"):
        os.utime(file, (epoch, epoch), follow_symlinks=False)
