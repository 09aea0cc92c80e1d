"""Who may import whom (DESIGN §3): the formats know nothing of the world, the agent nothing of the collector."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORMATS_MAY_USE = {"msgpack", "zstd", "orjson", "backports", "compression", "isal", "re2", "ndagent"}
FORMATS_MUST_NOT_USE = {"asyncio", "logging", "os", "random", "select", "socket", "ssl", "threading", "time"}


def imports(tree: ast.Module, package: str) -> Iterator[str]:
    """Every module a file imports, late imports too, relative ones made absolute."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def imports_of(path: Path) -> set[str]:
    package = ".".join(path.parent.relative_to(ROOT).parts)
    return set(imports(ast.parse(path.read_text(encoding="utf-8")), package))


def is_in(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


@pytest.mark.parametrize("path", files("ndcollector"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_collector_uses_only_formats_and_machine_of_the_agent(path: Path) -> None:
    """A file tailer must not become API by accident."""
    allowed = ("ndagent.wire", "ndagent.core", "ndagent.__version__")
    used = [name for name in imports_of(path) if is_in(name, "ndagent")]
    assert [name for name in used if not any(is_in(name, one) for one in allowed)] == []


@pytest.mark.parametrize("path", files("ndagent"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_agent_never_imports_the_collector(path: Path) -> None:
    """The agent installs alone."""
    assert [name for name in imports_of(path) if is_in(name, "ndcollector")] == []


@pytest.mark.parametrize("path", files("ndagent/wire"), ids=lambda path: path.name)
def test_the_formats_have_no_io_clock_log_or_loop(path: Path) -> None:
    """Decoding is a pure function; what it needs of the world comes in as arguments. (codec.py reads one variable.)"""
    found = imports_of(path)
    tops = {name.partition(".")[0] for name in found}
    allowed = {"os"} if path.name == "codec.py" else set()  # ND_PURE_CODEC
    assert tops & (FORMATS_MUST_NOT_USE - allowed) == set()
    assert tops - sys.stdlib_module_names <= FORMATS_MAY_USE
    assert [name for name in found if is_in(name, "ndagent") and not is_in(name, "ndagent.wire")] == []


@pytest.mark.parametrize("path", files("ndagent/core"), ids=lambda path: str(path.relative_to(ROOT)))
def test_the_machine_knows_no_plug(path: Path) -> None:
    """Plugs depend on the machine, never the other way round."""
    allowed = ("ndagent.wire", "ndagent.core", "ndagent.__version__")
    used = [name for name in imports_of(path) if is_in(name, "ndagent")]
    assert [name for name in used if not any(is_in(name, one) for one in allowed)] == []


def test_the_checker_sees_late_and_relative_imports() -> None:
    """The checks above are worth nothing if an import can hide."""
    tree = ast.parse("def f():\n    from ..outputs import file\n    import asyncio.tasks\n")
    assert set(imports(tree, "ndagent.core.spool")) == {"ndagent.core.outputs.file", "asyncio.tasks"}
