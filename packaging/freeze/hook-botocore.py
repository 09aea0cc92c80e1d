"""botocore's data for the services that the output s3 speaks to, in place of all of Amazon's (25 MB)."""

from pathlib import Path

import botocore

_DATA = Path(botocore.__file__).parent / "data"
_NEEDED = ("s3", "sts", "sso", "sso-oidc", "*.json")
datas = [
    (str(file), str(Path("botocore/data") / file.parent.relative_to(_DATA)))
    for pattern in _NEEDED
    for found in sorted(_DATA.glob(pattern))
    for file in (sorted(found.rglob("*.json*")) if found.is_dir() else [found])
]
