"""Why a TLS peer was refused, in words an operator can act on.

Promises: every way a handshake can fail maps to one reason (a metric label, so the set is closed) and each reason has a
remedy. Refuses: logging, counting.
"""

import ssl

REMEDIES = {
    "no_certificate": "the client sent no certificate: configure one on it, issued by a CA in tls.ca_file",
    "unknown_ca": "its certificate does not come from a CA in tls.ca_file: issue it a new one, or add its CA there",
    "certificate_expired": "issue it a new certificate, and check its clock and this machine's",
    "certificate_not_yet_valid": "check its clock and this machine's: its certificate is not valid yet",
    "certificate_revoked": "its certificate stands in the CRL: issue it a new one if it is to send again",
    "wrong_usage": "its certificate is not for TLS clients: issue one with the extended key usage clientAuth",
    "crl_expired": "the CRL is past its nextUpdate, so NO client is accepted: put a fresh one in tls.crl_file",
    "crl_not_yet_valid": "the CRL is from the future, so NO client is accepted: check this machine's clock",
    "crl_missing": "no CRL of the CA that issued its certificate: add it to tls.crl_file, or set no CRL at all",
    "certificate_invalid": "its certificate did not pass verification: issue it a new one",
    "certificate_unreadable": "its certificate cannot be parsed or hides control characters: issue a new one",
    "certificate_too_large": "no sender needs names or a chain of this size: issue it a smaller certificate, and let "
    "it send only what leads to the CA in tls.ca_file",
    "wrong_kind": "its certificate was issued for another purpose (nd: URI in its SAN): issue one of the right kind",
    "not_allowed": "add a name in its certificate to allow.names or its fingerprint to allow.fingerprints",
    "network_not_allowed": "add its network to allow.networks",
    "too_many_connections": "raise limits.connections, or find out who opens so many",
    "too_many_from_address": "raise limits.connections_per_address, or find out why this peer opens so many",
    "handshake_timeout": "it did not finish the TLS handshake in limits.handshake_timeout: is it a TLS client?",
    "too_many_part_messages": "it holds back the end of a long message while limits.partial_bytes is used up: "
    "raise that, or find out why so many peers do",
    "too_many_without_certificate": "raise limits.connections_without_certificate, or find out who opens so many",
    "too_many_from_agent": "raise limits.connections_per_agent, or find out why this agent opens so many",
    "request_timeout": "it did not finish the header of an HTTP request in limits.header_timeout",
    "response_timeout": "it did not read what it had asked for in limits.response_timeout",
    "protocol_error": "it breaks a rule of the protocol inside the TLS, as the detail says: update or configure it",
    "not_admitted": "the fleet does not know this agent, or no longer: see `ndcollector agents ls`",
    "no_connect": "it sent no CONNECT in connect_timeout: is it an MQTT client?",
    "keep_alive": "no whole packet came for one and a half times its keep-alive: it hangs, or its network does",
    "idle": "it sent nothing for limits.idle_timeout",
    "not_tls": "it does not speak TLS: switch its syslog transport from TCP to TLS",
    "tls_version": "it offers no TLS version as new as tls.minimum_version: update it",
    "no_shared_cipher": "it offers no cipher or key type that this collector accepts: update it or its key",
    "refused_by_peer": "the client refused this collector's certificate: give it the CA of tls.cert_file",
    "closed_in_handshake": "it closed the connection in the handshake: a port scan, or it does not trust us",
    "tls_error": "the TLS stream is damaged: look for a middlebox between the client and this collector",
}
"""Reason → what to do about it."""

# OpenSSL's x509_vfy.h: X509_V_ERR_*; stable numbers.
REVOKED = 23
UNTRUSTED = frozenset({2, 7, 18, 19, 20, 21, 24, 27, 28, 79})
_VERIFY_REASONS = {
    3: "crl_missing",
    9: "certificate_not_yet_valid",
    10: "certificate_expired",
    11: "crl_not_yet_valid",
    12: "crl_expired",
    REVOKED: "certificate_revoked",
    26: "wrong_usage",
    **dict.fromkeys(UNTRUSTED, "unknown_ca"),
}
_SSL_REASONS = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "no_certificate",
    "HTTP_REQUEST": "not_tls",
    "HTTPS_PROXY_REQUEST": "not_tls",
    "WRONG_VERSION_NUMBER": "not_tls",
    "UNKNOWN_PROTOCOL": "not_tls",
    "PACKET_LENGTH_TOO_LONG": "not_tls",
    "RECORD_TOO_SMALL": "not_tls",
    "BAD_RECORD_TYPE": "not_tls",
    "UNSUPPORTED_PROTOCOL": "tls_version",
    "VERSION_TOO_LOW": "tls_version",
    "NO_SHARED_CIPHER": "no_shared_cipher",
    "NO_SHARED_SIGNATURE_ALGORITHMS": "no_shared_cipher",
    "NO_SUITABLE_SIGNATURE_ALGORITHM": "no_shared_cipher",
    "NO_SHARED_GROUPS": "no_shared_cipher",
    "NO_SUITABLE_KEY_SHARE": "no_shared_cipher",
    "UNEXPECTED_EOF_WHILE_READING": "closed_in_handshake",
}


DETAIL_CHARACTERS = 500  # names in it are the peer's


class Refused(Exception):
    """A peer may not come in, or not stay: `reason` is a key of REMEDIES, `detail` the facts of this case, cut."""

    def __init__(self, reason: str, detail: str = "") -> None:
        detail = detail[:DETAIL_CHARACTERS]
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail

    @property
    def remedy(self) -> str:
        """What a person can do about it."""
        return REMEDIES[self.reason]


def refusal_for_verify_code(code: int, text: str) -> Refused:
    """The refusal behind one of OpenSSL's X509_V_ERR_* numbers."""
    return Refused(_VERIFY_REASONS.get(code, "certificate_invalid"), text)


def refusal_for(error: ssl.SSLError) -> Refused:
    """The refusal behind a failed handshake of the ssl module."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return refusal_for_verify_code(error.verify_code, error.verify_message)
    return refusal_for_reason(error.reason or str(error))


def refusal_for_reason(reason: str) -> Refused:
    """The refusal behind OpenSSL's reason text, such as NO_SHARED_CIPHER or TLSV1_ALERT_UNKNOWN_CA."""
    name = reason.upper().replace(" ", "_")
    if "_ALERT_" in name:
        return Refused("refused_by_peer", reason)
    return Refused(_SSL_REASONS.get(name, "tls_error"), reason)
