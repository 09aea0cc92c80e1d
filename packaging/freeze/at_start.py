"""Runs in a packaged program before anything of ours.

The boot loader points LD_LIBRARY_PATH at our libraries; this process has read it, and a child (journalctl) must load
the system's own. A child that is ourselves (`ndagent enroll`) must set it anew: with the loader's marks in its
environment it would take that for done. Bundled OpenSSL looks for authorities where Debian keeps them; elsewhere it is
told. Modules are read from the program that was started, not from the one that an upgrade has put in its place: between
unpacking and restart a daemon may have to import one more, and at its offset stands something else by then.
"""

import os

_BUNDLES = ("/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/ca-bundle.pem")
"""Fedora and its kin; SUSE."""


def _own_libraries_are_ours_alone() -> None:
    before = os.environ.pop("LD_LIBRARY_PATH_ORIG", None)
    if before is None:
        os.environ.pop("LD_LIBRARY_PATH", None)
    else:
        os.environ["LD_LIBRARY_PATH"] = before
    for name in [name for name in os.environ if name.startswith("_PYI_")]:
        del os.environ[name]


def _find_authorities() -> None:
    if os.path.isdir("/usr/lib/ssl/certs") or "SSL_CERT_FILE" in os.environ:  # noqa: PTH112 - pathlib costs memory
        return
    for bundle in _BUNDLES:
        if os.path.exists(bundle):  # noqa: PTH110 - as above
            os.environ["SSL_CERT_FILE"] = bundle
            return


def _read_the_program_that_was_started() -> None:
    """PyInstaller opens its archive by path for every module; this path is the file that runs, whatever its name."""
    import pyimod02_importers

    if os.path.exists("/proc/self/exe"):  # noqa: PTH110 - as above
        pyimod02_importers.pyz_archive._filename = "/proc/self/exe"  # noqa: SLF001 - there is no other way


_own_libraries_are_ours_alone()
_find_authorities()
_read_the_program_that_was_started()
