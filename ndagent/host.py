"""What is known of this machine, gathered once at start: for events (`host.*`) and for the collector's inventory.

Promises: nothing here fails: what a system does not say stays empty. Refuses: network addresses; they change, and the
collector sees the one that counts.
"""

import platform
import sys
from contextlib import suppress

from ndagent.inputs import HostFacts


def host_facts(name: str) -> HostFacts:
    """This host as events show it; `name` is what the configuration calls it."""
    release: dict[str, str] = {}
    with suppress(OSError):
        release = platform.freedesktop_os_release()
    uname = platform.uname()
    return HostFacts(
        hostname=uname.node or name,
        name=name,
        os_type="windows" if sys.platform == "win32" else sys.platform,
        os_platform=release.get("ID", uname.system.lower()),
        os_name=release.get("NAME", uname.system),
        os_version=release.get("VERSION_ID", uname.version),
        os_kernel=uname.release,
        architecture=uname.machine,
    )
