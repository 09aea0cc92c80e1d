"""Which files a policy may have read on this host: where `policy_allow.paths` says, and never a secret.

Promises: links are followed before anything is decided; a glob is allowed only where all that it can match is; secrets
(private keys, password files, the agent's own state, /proc, /sys, /dev) are refused whatever the host allows, by name,
by inode (a hard link to /etc/shadow is /etc/shadow) and by their first bytes.
Refuses: opening files. Whoever opens one for a policy asks `why_not_opened` about the descriptor before it reads from
it: what a path led to may have changed since `why_not` was asked.
"""

import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from ndagent.core.system_files import pread
from ndagent.inputs.file_paths import path_is_allowed

SECRET_NAMES = (
    "*.key", "*.pem", "*.p12", "*.pfx", "*.pkcs12", "*.jks", "*.keystore", "*.keytab", "*.kdbx", "*.ppk",
    "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", "id_ecdsa_sk", "id_ed25519_sk", "ssh_host_*_key",
    "shadow", "shadow-", "shadow.bak", "gshadow", "gshadow-", "gshadow.bak", "opasswd", "master.passwd",
    ".netrc", ".pgpass", ".git-credentials", ".my.cnf", ".htpasswd",
)  # fmt: skip
SECRET_DIRECTORIES = (".ssh", ".gnupg", ".aws", ".kube", ".docker")
"""Anywhere in a path."""
CLOSED_DIRECTORIES = ("/proc", "/sys", "/dev", "/etc/ssl/private", "/etc/pki/tls/private", "/etc/letsencrypt")
PASSWORD_FILES = ("/etc/shadow", "/etc/shadow-", "/etc/gshadow", "/etc/gshadow-", "/etc/security/opasswd")

_NOT_ON_WINDOWS = "is a file on Windows, where policies have no files read: name it in ndagent.yaml"
"""What is secret there, and under how many names, is not known here: so nothing is allowed."""
_HEAD_BYTES = 256
_PRIVATE_KEY = re.compile(rb"\s*(?:-----BEGIN [A-Z0-9 ]*PRIVATE KEY-----|PuTTY-User-Key-File-)")


class PathGuard:
    """The host's word on files. `own_directories` are the agent's (state, configuration)."""

    def __init__(
        self, globs: Iterable[str], *, own_directories: Iterable[Path], password_files: Sequence[str] = PASSWORD_FILES
    ) -> None:
        self._globs = tuple(globs)
        self._closed = [*CLOSED_DIRECTORIES, *(os.path.realpath(one) for one in own_directories)]
        self._password_files = password_files

    def why_not(self, path: str) -> str | None:
        """Why a policy may not name this path or glob; None if it may."""
        if sys.platform == "win32":
            return _NOT_ON_WINDOWS
        if not path.startswith("/") or "\0" in path:
            return "is not an absolute path"
        if ".." in path.split("/"):
            return "goes up with '..'"
        return self._why_secret(path) or self._why_secret(os.path.realpath(path)) or self._why_outside(path)

    def why_not_opened(self, descriptor: int) -> str | None:
        """Why a policy's input may not read from this open file; None if it may. Linux only (/proc)."""
        if sys.platform == "win32":
            return _NOT_ON_WINDOWS
        real = str(Path(f"/proc/self/fd/{descriptor}").readlink()).removesuffix(" (deleted)")
        reason = self._why_secret(real) or self._why_outside(real)
        if reason is not None:
            return reason
        status = os.fstat(descriptor)
        for one in self._password_files:
            with suppress(OSError):
                if os.path.samestat(status, Path(one).stat()):
                    return f"is {one} by another name"
        with suppress(OSError):  # a pipe has no beginning to look at
            if _PRIVATE_KEY.match(pread(descriptor, _HEAD_BYTES, 0)):
                return "holds a private key"
        return None

    def _why_secret(self, path: str) -> str | None:
        *directories, name = [part for part in path.split("/") if part] or [""]
        if any(fnmatchcase(name, one) for one in SECRET_NAMES) or not set(SECRET_DIRECTORIES).isdisjoint(directories):
            return "may hold secrets and is never read for a policy"
        if any(path == one or path.startswith(f"{one}/") for one in self._closed):
            return "lies in a directory that is never read for a policy"
        return None

    def _why_outside(self, path: str) -> str | None:
        if path_is_allowed(path, self._globs):
            return None
        return f"is outside policy_allow.paths ({', '.join(self._globs) or 'empty'})"
