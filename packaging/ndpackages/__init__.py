"""Builds the deb and rpm packages of ndagent and ndcollector: `make packages`.

    root.py      a clean Debian 12, made once and unpacked anew for every build
    lock.py      the Python packages that go in, by version and SHA-256 (packaging/requirements.lock)
    inside.py    runs in that root, without a network: everything below
    freezing.py  our code and CPython as one directory (PyInstaller), and what of it comes from where
    manual.py    man pages from the command line's own parser · changelog.py  Debian's, from CHANGELOG.md
    notices.py   licences of all that is bundled · sbom.py  the same for machines, in CycloneDX
    floor.py     the oldest C library it runs on
    layout.py    which file goes where · scripts.py  what runs at installation and removal · deb.py, rpm.py  the packing

Promises: the same commit and the same root give the same bytes; nothing but the lock's packages and Debian's own goes
in; a package without the compiled codec is not made.
Refuses: signing and uploading; other architectures than the machine's own; building without root (it needs chroot).
"""
