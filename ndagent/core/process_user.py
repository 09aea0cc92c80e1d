"""Who this process is and who it should be, for messages: the effective user, not who logged in."""

import os
import sys

WITH_RIGHTS = "as an Administrator" if sys.platform == "win32" else "as root, or as the agent's user"
"""How to run a command that was refused the agent's files."""


def process_user() -> str:
    """Its name, or its number where it has none, as in many containers."""
    if sys.platform == "win32":
        return os.getlogin()  # GetUserName there: of the process, not of the terminal
    import pwd  # POSIX has it

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"
