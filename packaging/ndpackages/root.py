"""Clean Debian root file systems: made by debootstrap once, kept as an archive, unpacked for each use.

Promises: what was done in one use is gone in the next; the host's files are not touched outside the directory given.
Debian's security updates are in, because packages built here carry its OpenSSL. Refuses: anybody but root.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

BUILD_PACKAGES = ("python3-venv", "python3-dev", "gcc", "libc6-dev", "binutils", "ca-certificates")
_MIRROR_VARIABLE = "ND_DEBIAN_MIRROR"
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class RootError(RuntimeError):
    """No root could be made, or a command in it failed; the text ends with what was said there."""


@dataclass(frozen=True)
class Root:
    """A root file system on this machine."""

    path: Path

    def run(
        self, *command: str, environ: Mapping[str, str] | None = None, network: bool = False, quiet: bool = True
    ) -> str:
        """A command in it, with /proc, in a mount namespace of its own; stdout. Raises RootError."""
        namespaces = ["unshare", "--mount", *([] if network else ["--net"])]
        inner = 'mount -t proc proc "$1/proc" && exec chroot "$@"'
        done = subprocess.run(
            [*namespaces, "sh", "-c", inner, "sh", str(self.path), *command],
            env={"PATH": _PATH, "HOME": "/root", "LC_ALL": "C.UTF-8", **(environ or {})},
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT if quiet else None,
            text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise RootError(f"{' '.join(command)} failed in {self.path}:\n{(done.stdout or '')[-4000:]}")
        return done.stdout

    def lend_network(self) -> None:
        """Names and certificates of the host, so that programs in it reach what the host reaches."""
        for name in ("resolv.conf", "pip.conf", "ssl/certs/ca-certificates.crt"):
            source, target = Path("/etc", name), self.path / "etc" / name
            if source.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source, target)


def clean_root(suite: str, *, packages: Sequence[str], cache: Path, target: Path) -> Root:
    """A fresh root of this suite with these packages at `target`, from the archive in `cache` or a new one."""
    if os.geteuid():
        raise RootError("packages are built in a clean Debian, by chroot: run it as root")
    archive = cache / f"{suite}-{_digest(packages)}.tar"
    if not archive.exists():
        _make_archive(suite, packages, archive)
    remove_tree(target)
    target.mkdir(parents=True)
    _host("tar", "--numeric-owner", "-xpf", str(archive), "-C", str(target))
    return Root(target)


def remove_tree(path: Path) -> None:
    """Remove a root; never what is still mounted below it."""
    if path.exists():
        _host("rm", "-rf", "--one-file-system", str(path))


def _digest(packages: Sequence[str]) -> str:
    import hashlib

    return hashlib.sha256(" ".join(sorted(packages)).encode()).hexdigest()[:10]


def _make_archive(suite: str, packages: Sequence[str], archive: Path) -> None:
    archive.parent.mkdir(parents=True, exist_ok=True)
    work = archive.with_suffix(".making")
    remove_tree(work)
    mirror = os.environ.get(_MIRROR_VARIABLE)
    _host(
        "debootstrap", "--variant=minbase", f"--include={','.join(sorted(packages))}", suite, str(work),
        *([mirror] if mirror else []),
    )  # fmt: skip
    root = Root(work)
    root.lend_network()
    _add_security_updates(root, suite)
    for directory in ("var/cache/apt", "var/lib/apt/lists", "var/log"):
        _host("find", str(work / directory), "-type", "f", "-delete")
    partial = archive.with_suffix(".partial")
    _host("tar", "--numeric-owner", "-cpf", str(partial), "-C", str(work), ".")
    partial.rename(archive)
    remove_tree(work)


def _add_security_updates(root: Root, suite: str) -> None:
    """The mirror that debootstrap wrote down has them beside the suite itself."""
    sources = root.path / "etc/apt/sources.list"
    found = re.search(r"^deb (\S+?)/? ", sources.read_text(), re.MULTILINE)
    if found is None:
        raise RootError(f"{sources} names no mirror")
    sources.write_text(
        f"deb {found[1]} {suite} main\ndeb {found[1]} {suite}-updates main\n"
        f"deb {found[1]}-security {suite}-security main\n"
    )
    apt = {"DEBIAN_FRONTEND": "noninteractive"}
    root.run("apt-get", "-q", "update", environ=apt, network=True)
    root.run("apt-get", "-q", "-y", "dist-upgrade", environ=apt, network=True)


def _host(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RootError(f"{' '.join(command)} failed:\n{(done.stdout + done.stderr)[-4000:]}")
