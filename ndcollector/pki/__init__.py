"""The built-in certificate authority: for a start without a PKI, for the demo and for the tests.

Promises: ECDSA P-256; one CA that can sign nothing but leaves; identities as typed URIs (`nd:server:<name>`,
`nd:device:<name>`, `nd:agent:<id>`) with the one extended key usage that fits; a CRL from the first minute; no key or
CA is ever overwritten; a certificate is in the index before it exists, so that each one can be revoked; two commands at
the same time wait for each other; after a crash at any instruction the next command goes on.
Refuses: being a general CA. No policies, no OCSP, no intermediate; a customer's own PKI works without any of this.

Files of a PKI directory (0700; keys 0600; made by root, they belong to the directory's owner):

    ca.crt ca.key ca.crl              the CA; ca.key may be moved away, then nothing is issued or revoked here
    server.crt server.key             this collector's pair, as the default configuration names it
    issued/<kind>-<name>.crt .key     everything else; .<serial>.crt/.key beside it is what a renewal replaced
    index.jsonl                       one line per certificate issued or revoked; the CRL is made from it
    .lock                             flock: one writer at a time

Time comes in as `now` (aware) everywhere.
"""

from ndcollector.pki.authority import Issued, init, issue
from ndcollector.pki.names import Subject
from ndcollector.pki.revocation import crl_expiry, refresh_crl_if_due, revoke
from ndcollector.pki.store import Certificate, PkiError, list_certificates

__all__ = [
    "Certificate",
    "Issued",
    "PkiError",
    "Subject",
    "crl_expiry",
    "init",
    "issue",
    "list_certificates",
    "refresh_crl_if_due",
    "revoke",
]
