"""The messages that say that a state changed, each with the identity that it has in the journal (MESSAGE_ID).

    log.info("ready: %s", status, extra=messages.READY)

An identity is 128 bits, made by chance once (`systemd-id128 new`) and never used for anything else. What each message
means, what follows from it and what to do stands in packaging/catalog.py, from which the catalogues are made that
`journalctl -x` shows; tests/systemd/test_catalog.py sees that none is missing there. The text of a message may change,
its identity may not: alerts hang on it.

Refuses: texts. An agent need not hold in memory what a person reads once a year.
"""

from typing import Final

# The daemon
READY: Final = {"message_id": "70122b58124f430ca29a53f2a20e44fa"}
STOPPED: Final = {"message_id": "965c57791d0942568c94b0bb2280b151"}
CANNOT_START: Final = {"message_id": "cd455c8c00034baebaa14d32e52e9c17"}
CRASHED: Final = {"message_id": "80bef32e570f47a795edf11240ba8038"}
RELOADED: Final = {"message_id": "10e442792ca44f9cb042822fb5067cbe"}
RELOAD_REFUSED: Final = {"message_id": "48e1ce36948f431f89dd3b213cb61d79"}
PART_FAILED: Final = {"message_id": "9c3a43a48d9443cabe67642a44cab4d9"}
STUCK: Final = {"message_id": "43f04f71dc5647bfa8039d721e3b0c2b"}
SOCKETS_TAKEN_OVER: Final = {"message_id": "36024951efa347068f48920653d7b4f3"}
SOCKET_UNUSED: Final = {"message_id": "386edcc78c8341ef96b4a8f53a9cd51f"}

# Spool and disk
SPOOL_FILLING: Final = {"message_id": "e52900c6f06248bea00566d19aaa8e21"}
SPOOL_HAS_ROOM: Final = {"message_id": "63023f7758584d96b1f4ac27c4662028"}
SPOOL_FULL: Final = {"message_id": "eedbffd7edc34463ba0bcf73e6437988"}
SPOOL_TAKES_AGAIN: Final = {"message_id": "5620b12ec6944bbfae19ac606760d312"}
EVENTS_EVICTED: Final = {"message_id": "5fea9a55958a46e498d06d809f4f130f"}
DISK_FAILED: Final = {"message_id": "6eb053ed44cb499aa61c4ac750c598f2"}
SPOOL_DAMAGED: Final = {"message_id": "cd7b9e09d0a14fdd9499a03deae24e6d"}
SPOOL_WENT_BACK: Final = {"message_id": "af2b3b1c034a434b875a7498679ae911"}
OUTPUT_RETIRED: Final = {"message_id": "46428dbf7b5147a3aa43293cfbbccfa8"}

# Outputs
NOT_DELIVERING: Final = {"message_id": "355ad772f46d4fa5b536aed0ccf1f33d"}
DELIVERING_AGAIN: Final = {"message_id": "58b5b6acab5c4b82a3870a471c1d3ce9"}
BREAKER_OPEN: Final = {"message_id": "9c03f7ffd9694395aea709147ecd0c51"}
BREAKER_CLOSED: Final = {"message_id": "2eb3ddb62ec9415c8d7c74429429111c"}
DEAD_LETTERS: Final = {"message_id": "80afae1b14944f3aa82a398c465fd150"}
DEAD_LETTERS_FILLING: Final = {"message_id": "4493875e5a3844d6ba82070490bf2870"}
OUTPUT_BLOCKED: Final = {"message_id": "d97e8e179a5b4fdca27bae364e4faf17"}
OUTPUT_BUG: Final = {"message_id": "fbae148972074e3595d944bd8fc02fb3"}
FILE_SEALED: Final = {"message_id": "aaa394564836478b8e90cad23c788289"}

# Inputs
LISTENING: Final = {"message_id": "26210b551b934bca8067706da49a3976"}
PEER_REFUSED: Final = {"message_id": "2ce4e1ea3b034e03811cc9547d8be15c"}
OUT_OF_FILES: Final = {"message_id": "df00e3fdd600493a8b033b4f1d66677e"}
SENDER_SLOWED: Final = {"message_id": "76105a3058194ad58416a143694edcfc"}
DATAGRAMS_LOST: Final = {"message_id": "ce2d9b5aa4a445c1a2e6558670afee4b"}
LINES_LOST: Final = {"message_id": "3534ad3d10444877b610367ce8277db7"}
EVENTS_LOST_AT_STOP: Final = {"message_id": "556018b5693a4921a02512457cafa1bb"}

# Certificates
CERTIFICATES_RELOADED: Final = {"message_id": "176fbb502893469092c6a51157820780"}
CERTIFICATES_UNUSABLE: Final = {"message_id": "471cbb8ad41246dca068f38bf7268afb"}
CERTIFICATE_EXPIRES: Final = {"message_id": "d74c0cecd6564c7ea42b29c8f95eaf0f"}
REVOCATION_LIST_OLD: Final = {"message_id": "c8de9707d37a48089f13400408e7f372"}

# An agent
IDENTITY: Final = {"message_id": "fa1e8abc7e2547ffa0f6ff276cbcbc66"}
NOT_ENROLLED: Final = {"message_id": "af48d0d164274e76a9f64ab68d22979a"}
SENDING_TO: Final = {"message_id": "0a431bb1a9d945158ce841897767e621"}
COLLECTOR_LEFT: Final = {"message_id": "1e02a9b3414649d684a16e49bd74fc95"}
POLICY_IN_FORCE: Final = {"message_id": "bf85150d3cf4472e8e38ff01e22c3857"}
POLICY_REFUSED: Final = {"message_id": "5d50e5596cab469dbf8fdce63341615a"}
POLICY_ROLLED_BACK: Final = {"message_id": "6a3bb5caba464f1db458124c047b2d59"}

# Agents, as the collector sees them
AGENT_ENROLLED: Final = {"message_id": "dba49f757208488b8be55aef94969153"}
ENROLMENT_REFUSED: Final = {"message_id": "ec12fe4d4e4346df8b11b948e80e574a"}
AGENT_REFUSED: Final = {"message_id": "411aca63070144a488e0f120e87fc115"}
CLONE_SUSPECTED: Final = {"message_id": "534f2c7ba2fe4a41b3ccbf4f38e164cc"}
INVENTORY_DAMAGED: Final = {"message_id": "ed72d554a1494eacb85a578faf90a691"}
AUDIT_UNWRITTEN: Final = {"message_id": "0d81debeabd843b8a208f135c3a67841"}

# The ledger
LEDGER_UNSAVED: Final = {"message_id": "a9d8a5d393504a01bc85c4a4acb1cc9c"}
LEDGER_SAVED_AGAIN: Final = {"message_id": "d29428a16bb340eb9ca35c13ecf9f081"}
LEDGER_WRONG: Final = {"message_id": "4923f5b818f9405d9812ea0ddb889762"}
