"""A tree as a Debian package, by dpkg-deb: Debian's own tool, which takes its time stamps from SOURCE_DATE_EPOCH.

Promises: conffiles are what lies below /etc; files belong to root (the daemon's group is made by postinst).
"""

import hashlib
import subprocess
from pathlib import Path

from ndpackages import scripts
from ndpackages.layout import MAINTAINER, Tree


def pack(tree: Tree, output: Path) -> None:
    """Write the package. Raises CalledProcessError."""
    control = tree.path / "DEBIAN"
    scripts.write_scripts(tree.product.name, "deb", source=tree.source / "packaging/deb", target=control)
    files = sorted(file for file in tree.path.rglob("*") if file.is_file() and not file.is_symlink())
    files = [file for file in files if control not in file.parents]
    conffiles = [f"/{file.relative_to(tree.path)}\n" for file in files if tree.path / "etc" in file.parents]
    fixed = [file for file in files if tree.path / "etc" not in file.parents]  # dpkg keeps conffiles' sums itself
    sums = [f"{_md5(file)}  {file.relative_to(tree.path)}\n" for file in fixed]
    kibibytes = sum(-(-file.stat().st_size // 1024) for file in files)
    (control / "conffiles").write_text("".join(conffiles), encoding="utf-8")
    (control / "md5sums").write_text("".join(sums), encoding="utf-8")
    (control / "control").write_text(_control(tree, kibibytes), encoding="utf-8")
    name = f"{tree.product.name}_{tree.version}-{tree.release}_{tree.architecture}.deb"
    command = ["dpkg-deb", "--root-owner-group", "-Zxz", "-z9", "--build", str(tree.path), str(output / name)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def _control(tree: Tree, kibibytes: int) -> str:
    product = tree.product
    fields = {
        "Package": product.name,
        "Version": f"{tree.version}-{tree.release}",
        "Architecture": tree.architecture,
        "Maintainer": MAINTAINER,
        "Installed-Size": str(kibibytes),
        "Depends": ", ".join([f"libc6 (>= {tree.floor})", *product.needs]),
        "Recommends": ", ".join(product.recommends),
        "Section": "admin",
        "Priority": "optional",
        "Description": "\n ".join([product.summary, *product.description.splitlines()]),
    }
    return "".join(f"{name}: {value}\n" for name, value in fields.items())


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()
