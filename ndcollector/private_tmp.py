"""Places that systemd empties when the service stops: /tmp and /var/tmp of a unit with PrivateTmp=yes.

The unit sees an empty directory of its own there, and its files go with it at each stop; nobody else ever saw them.
Refuses: guessing by the path. What is mounted there says it (proc_pid_mountinfo(5)).
"""

from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")
_PRIVATE = "/systemd-private-"


def emptied_at_stop(path: Path, *, mounts: Path = _MOUNTS) -> Path | None:
    """The mount point below which this path would be lost at a stop; None where it stays."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None  # not Linux
    real = path.resolve()
    for _, _, _, root, point, *_ in (line.split(" ", 5) for line in lines):
        if _PRIVATE in root and real.is_relative_to(point):
            return Path(point)
    return None
