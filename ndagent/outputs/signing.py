"""Signs what goes over a broker that is not ours, with the key of the agent's certificate: ECDSA P-256, SHA-256, DER.

Promises: the signature is that of wire/envelope.py; a status report travels in an envelope too, of the stream "status",
because a broker can put words in anybody's mouth.
Refuses: being imported where nobody signs: cryptography costs 8 MB, and everybody else leaves it to a child process.
"""

import time
from collections.abc import Callable
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, EllipticCurvePrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from ndagent.core.interfaces import Unavailable
from ndagent.wire.envelope import STATUS_STREAM, Header, compress, seal

Sign = Callable[[bytes], bytes]


def signer(pair: Path) -> Sign:
    """What signs with the key in this file (see identity.py); raises Unavailable."""
    try:
        key = load_pem_private_key(pair.read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise Unavailable(f"{pair}: {error}; enroll again if it stays so") from error
    if not isinstance(key, EllipticCurvePrivateKey):
        raise Unavailable(f"{pair}: its key is not an ECDSA one; enroll again")
    algorithm = ECDSA(SHA256())
    return lambda data: key.sign(data, algorithm)


def signed_status(document: bytes, *, agent_id: str, run_id: str, sign: Sign) -> bytes:
    """A status report (wire/status.py) as an envelope of one line."""
    line = document + b"\n"
    now_ns = time.time_ns()
    header = Header(
        stream=STATUS_STREAM,
        spool_id=run_id,  # it comes from no spool; run and time name it
        first=now_ns,
        last=now_ns,
        count=1,
        length=len(line),
        sent_at_ns=now_ns,
        agent_id=agent_id,
        run_id=run_id,
    )
    return seal(header, compress(line), sign=sign)
