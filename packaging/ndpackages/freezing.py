"""A product as one directory that needs no Python on the machine: PyInstaller's onedir.

Promises: all of our modules are in, since plugs are imported by name only; what is bundled is accounted for by origin,
a Python distribution or a Debian package (notices.py wants to know). Refuses: a tree without the compiled codec.
"""

import ast
import os
import subprocess
import sys
import sysconfig
from dataclasses import dataclass
from importlib.metadata import packages_distributions
from pathlib import Path

from ndpackages.products import Product

_STORED = {"PYINSTALLER_ZLIB_COMPRESSION_LEVEL": "0"}
"""Modules lie in the program as they are: a start inflates nothing (24 ms of the agent's), and what the package
compresses as a whole comes out smaller than what is compressed already (1.9 MB of the agent's)."""
_ENTRY = "import sys\nfrom {name}.__main__ import main\nsys.exit(main())\n"


@dataclass(frozen=True)
class Frozen:
    """The directory, and whence its parts are."""

    tree: Path
    distributions: frozenset[str]  # of the Python packages in it, our own not counted
    debian_packages: frozenset[str]  # whose files are in it: CPython and C libraries


def freeze(product: Product, source: Path, work: Path) -> Frozen:
    """Run PyInstaller. Raises CalledProcessError, or RuntimeError where the codec is missing."""
    work.mkdir(exist_ok=True)
    entry = work / f"start_{product.name}.py"  # not the package's own name: it would shadow it
    entry.write_text(_ENTRY.format(name=product.name), encoding="utf-8")
    options = [f"--collect-submodules={name}" for name in product.packages]
    options += [f"--hidden-import={name}" for name in (*product.packages, *product.modules)]
    options += [f"--exclude-module={name}" for name in product.without]
    hooks = source / "packaging/freeze"
    command = [
        sys.executable, "-m", "PyInstaller", "--noconfirm", "--clean", "--log-level=WARN", "--onedir", "--strip",
        f"--optimize={product.optimize}", f"--name={product.name}",
        f"--specpath={work}", f"--workpath={work}/work", f"--distpath={work}/dist",
        f"--additional-hooks-dir={hooks}", f"--runtime-hook={hooks / 'at_start.py'}", *options, str(entry),
    ]  # fmt: skip
    subprocess.run(command, check=True, cwd=work, env={**os.environ, **_STORED})
    tree = work / "dist" / product.name
    _try(tree / product.name)
    if not list(tree.rglob("ndagent/wire/_codec*.so")):
        raise RuntimeError(f"{tree} has no compiled codec")
    modules, files = _contents(work / "work" / product.name)
    return Frozen(tree, _distributions(modules), _debian_packages(files))


def _try(program: Path) -> None:
    """What is frozen starts, and finds all that its command line needs."""
    for option in ("--version", "--help"):
        subprocess.run([str(program), option], check=True, stdout=subprocess.DEVNULL)


def _contents(work: Path) -> tuple[set[str], set[Path]]:
    """Names of the modules in it, and the files that were copied: from the tables that PyInstaller leaves."""
    modules, files = set(), set()
    for table in (*work.glob("PYZ-*.toc"), *work.glob("COLLECT-*.toc")):
        parts = ast.literal_eval(table.read_text(encoding="utf-8"))
        for row in (row for part in parts if isinstance(part, list) for row in part):
            name, path, kind = row[0], row[1], row[2]
            if kind in {"PYMODULE", "PYMODULE-1", "PYMODULE-2"}:
                modules.add(name)
            elif kind in {"EXTENSION", "BINARY", "DATA"}:
                modules.add(name.partition("/")[0].partition(".")[0])
                files.add(Path(path))
    return modules, files


def _distributions(modules: set[str]) -> frozenset[str]:
    """Whose modules these are; what the standard library has is not among them."""
    owners = packages_distributions()
    tops = {name.partition(".")[0] for name in modules} - {"ndagent", "ndcollector"}
    found = {owner for top in tops if top not in sys.stdlib_module_names for owner in owners.get(top, ())}
    if any(name == "backports" or name.startswith("backports.") for name in modules):
        found.add("backports.zstd")
    return frozenset(found | {"pyinstaller"})  # its boot loader is the executable


def _debian_packages(files: set[Path]) -> frozenset[str]:
    """The Debian packages that these files come from; CPython's library is among them."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    paths = {str(path) for path in files if path.is_absolute()} | {str(stdlib / "os.py"), str(stdlib / "abc.py")}
    found = set()
    for path in sorted(paths):
        for name in {path, path.removeprefix("/usr"), f"/usr{path}"}:
            done = subprocess.run(["dpkg-query", "-S", name], capture_output=True, text=True, check=False)
            found |= {line.partition(":")[0] for line in done.stdout.splitlines() if line.endswith(f" {name}")}
    return frozenset(found)
