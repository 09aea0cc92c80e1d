"""What runs when a package is installed, upgraded and removed: packaging/deb and packaging/rpm, put together.

Promises: a script is its own file of the product, in which the line `#UNITS#` is replaced by the part about systemd
that both products share (as debhelper does with #DEBHELPER#), `#SEED#` by what both formats do with an agent's token
(packaging/seed), and `@NAME@` by the product's name. A script that the product does not have is the shared part alone.
Only NAME.service is enabled: sockets and instances are a choice.
"""

from pathlib import Path

STEPS = {
    "deb": {"preinstall": "preinst", "postinstall": "postinst", "preremove": "prerm", "postremove": "postrm"},
    "rpm": {"preinstall": "pre", "postinstall": "post", "preremove": "preun", "postremove": "postun"},
}
"""nfpm's word for a step → each format's own name of the script."""
_MARK, _SEED = "#UNITS#\n", "#SEED#\n"
_ALONE = f"#!/bin/sh\nset -e\n{_MARK}"


def write_scripts(product: str, kind: str, *, source: Path, target: Path) -> dict[str, str]:
    """Write the scripts of a package to `target`; nfpm's step → path."""
    target.mkdir(parents=True, exist_ok=True)
    seed = (source.parent / "seed").read_text(encoding="utf-8")
    written = {}
    for step, name in STEPS[kind].items():
        own, shared = source / f"{product}.{name}", source / f"units.{name}"
        if not own.exists() and not shared.exists():
            continue
        text = own.read_text(encoding="utf-8") if own.exists() else _ALONE
        part = shared.read_text(encoding="utf-8") if shared.exists() else ""
        script = target / name
        whole = text.replace(_SEED, seed).replace(_MARK, part).replace("@NAME@", product)
        script.write_text(whole, encoding="utf-8")
        script.chmod(0o755)
        written[step] = str(script)
    return written
