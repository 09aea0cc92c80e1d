"""What went wrong with a request, in one line that names the endpoint and what to do about it.

Refuses: secrets. Nothing here quotes what was sent.
"""

import re
import ssl
from collections.abc import Callable, Iterator

import aiohttp

from ndcollector.traffic.body import AnswerTooLargeError

_ALERTS = {
    "CERTIFICATE_REQUIRED": "wants a certificate of ours: set tls.cert_file and tls.key_file",
    "ALERT_CERTIFICATE_EXPIRED": "says that our certificate has expired: renew tls.cert_file (no restart is needed)",
    "ALERT_CERTIFICATE_REVOKED": "says that our certificate is revoked: put a new one into tls.cert_file",
    "ALERT_UNKNOWN_CA": "does not know the CA of our certificate: it must trust it, or tls.cert_file must be another",
    "ALERT_BAD_CERTIFICATE": "does not accept our certificate: look at tls.cert_file",
    "ALERT_UNSUPPORTED_CERTIFICATE": "does not accept our certificate: look at tls.cert_file",
    "HANDSHAKE_FAILURE": "found no TLS in common, or wants a certificate of ours (tls.cert_file)",
    "WRONG_VERSION_NUMBER": "does not speak TLS on this port; is it http:// and not https://?",
    "UNSUPPORTED_PROTOCOL": "speaks no TLS that is newer than 1.1",
    "ALERT_PROTOCOL_VERSION": "speaks no TLS that we speak (1.2 and newer)",
}

_EXPIRED = 10  # X509_V_ERR_CERT_HAS_EXPIRED
_NOT_YET = 9
_HOST_MISMATCH, _ADDRESS_MISMATCH = 62, 64


def explain(error: BaseException, *, connect_seconds: float, request_seconds: float, about_us: str = "") -> str:
    """What follows the endpoint's name in a sentence.

    `about_us`: what our own certificate may have to do with a connection that was broken off. In TLS 1.3 a far side
    refuses it after the handshake, and its reset often overtakes the alert that says why.
    """
    for cause in _causes(error):
        if isinstance(cause, aiohttp.ClientError):
            continue  # some of them are errors of ssl too, without the details
        if isinstance(cause, ssl.SSLCertVerificationError):
            return _certificate(cause)
        if isinstance(cause, ssl.SSLError):
            return _alert(cause)
    if isinstance(error, aiohttp.ConnectionTimeoutError):
        return f"takes no connection within {connect_seconds:g}s; is it up, is there a firewall in between?"
    if isinstance(error, TimeoutError):
        return f"gave no whole answer within {request_seconds:g}s (request_timeout); is it overloaded?"
    for kind, say in _KINDS:
        if isinstance(error, kind):
            return say(error) + (about_us if say in (_disconnected, _broken_off) else "")
    return f"{type(error).__name__}: {error}"


def may_be_tls(error: BaseException) -> bool:
    """Whether certificates may have been the reason."""
    return isinstance(error, OSError | aiohttp.ServerDisconnectedError) and not isinstance(error, TimeoutError)


def _dns(error: BaseException) -> str:
    return f"cannot be resolved ({_os_text(error)}); check DNS, or the host in url"


def _proxy(error: BaseException) -> str:
    status = getattr(error, "status", 0)
    if status == 407:
        return "is not reached: the proxy wants credentials; check proxy_credentials"
    return f"is not reached: the proxy answered {status}; may it connect there?"


def _connect(error: BaseException) -> str:
    if any(isinstance(cause, ConnectionRefusedError) for cause in _causes(error)):
        return "refuses connections: nothing listens there; is it up, is the port right?"
    return f"cannot be connected to ({_os_text(error)}); is it up, is the network?"


def _disconnected(_error: BaseException) -> str:
    return "closed the connection without an answer; look at its log"


def _cut_short(error: BaseException) -> str:
    detail = " ".join(str(error).split())[:160]
    return f"sent an answer that is cut short or garbled ({detail}); is there a proxy in between, did it crash?"


def _no_http(error: BaseException) -> str:
    detail = " ".join(str(getattr(error, "message", "") or error).split())[:160]
    return f"answers what is no HTTP ({detail}); is the URL's port right, is there a broken proxy in between?"


def _broken_off(error: BaseException) -> str:
    return f"broke the connection off ({_os_text(error)}); look at its log"


def _too_large(_error: BaseException) -> str:
    return "sends an answer larger than max_answer_bytes; is the URL right?"


_KINDS: tuple[tuple[type[BaseException], Callable[[BaseException], str]], ...] = (
    (AnswerTooLargeError, _too_large),
    (aiohttp.ClientConnectorDNSError, _dns),
    (aiohttp.ClientHttpProxyError, _proxy),
    (aiohttp.ClientProxyConnectionError, lambda error: f"is not reached: the proxy {_connect(error)}"),
    (aiohttp.ClientConnectorError, _connect),
    (aiohttp.ServerDisconnectedError, _disconnected),
    (aiohttp.ClientPayloadError, _cut_short),
    (aiohttp.ClientResponseError, _no_http),
    (aiohttp.http.HttpProcessingError, _no_http),
    (OSError, _broken_off),
)
"""The first that fits; aiohttp's errors of connections are OSErrors."""


def _certificate(error: ssl.SSLCertVerificationError) -> str:
    if error.verify_code == _EXPIRED:
        return "has a certificate that has expired: whoever runs it must renew it"
    if error.verify_code == _NOT_YET:
        return "has a certificate that is not valid yet: is the clock of this machine right?"
    if error.verify_code in (_HOST_MISMATCH, _ADDRESS_MISMATCH):
        return f"has a certificate for another name ({error.verify_message}); correct url, or set tls.server_name"
    return f"has a certificate that we do not trust ({error.verify_message}); put its CA into tls.ca_file"


def _alert(error: ssl.SSLError) -> str:
    known = next((text for alert, text in _ALERTS.items() if alert in (error.reason or "")), None)
    reason = (error.reason or str(error)).replace("_", " ").lower()
    return f"{known or 'ended the TLS connection'} ({reason})"


def _os_text(error: BaseException) -> str:
    for cause in _causes(error):
        text = getattr(cause, "strerror", None)
        if isinstance(cause, OSError) and text and not isinstance(cause, aiohttp.ClientError):
            return str(text)
    return re.sub(r"\s+", " ", str(error)) or type(error).__name__


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what it came from, and what aiohttp keeps inside its own."""
    while error is not None:
        yield error
        inner = getattr(error, "os_error", None) or getattr(error, "certificate_error", None)
        error = inner if isinstance(inner, BaseException) and inner is not error else error.__cause__
