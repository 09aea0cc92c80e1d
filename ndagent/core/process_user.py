"""Who this process is, for messages: the effective user, not who logged in (getpass asks the environment)."""

import os
import sys


def process_user() -> str:
    """Its name, or its number where it has none, as in many containers."""
    if sys.platform == "win32":
        return os.getlogin()  # GetUserName there: of the process, not of the terminal
    import pwd  # POSIX has it

    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"uid {os.geteuid()}"
