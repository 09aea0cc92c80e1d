"""pydantic imports its modules by name; of those, the ones that models of today need."""

from PyInstaller.utils.hooks import collect_submodules

_NEVER = ("pydantic.v1", "pydantic.mypy", "pydantic.experimental")
hiddenimports = collect_submodules("pydantic", filter=lambda name: not name.startswith(_NEVER))
