"""Numbers of Windows that people know by name: logon types, levels, keywords, status codes, Kerberos results.

Facts of Microsoft's public documents (winevt.h, ntstatus.h, the pages on security auditing; RFC 4120 section 7.5.9 for
Kerberos errors, RFC 3961 and the registry it began for encryption types); a number that is not here stays a number.
"""

LEVELS = {
    "0": "information",  # LogAlways: what security auditing uses
    "1": "critical",
    "2": "error",
    "3": "warning",
    "4": "information",
    "5": "verbose",
}

OPCODES = {
    "0": "Info", "1": "Start", "2": "Stop", "3": "DCStart", "4": "DCStop", "5": "Extension", "6": "Reply",
    "7": "Resume", "8": "Suspend", "9": "Send", "240": "Receive",
}  # fmt: skip

AUDIT_FAILURE, AUDIT_SUCCESS = 1 << 52, 1 << 53
KEYWORDS = {
    1 << 48: "Response Time",
    1 << 49: "WDI Context",
    1 << 50: "WDI Diag",
    1 << 51: "SQM",
    AUDIT_FAILURE: "Audit Failure",
    AUDIT_SUCCESS: "Audit Success",
    1 << 54: "Correlation Hint",
    1 << 55: "Classic",
}

LOGON_TYPES = {
    "0": "System", "2": "Interactive", "3": "Network", "4": "Batch", "5": "Service", "7": "Unlock",
    "8": "NetworkCleartext", "9": "NewCredentials", "10": "RemoteInteractive", "11": "CachedInteractive",
    "12": "CachedRemoteInteractive", "13": "CachedUnlock",
}  # fmt: skip

STATUSES = {
    "0x0": "no error",
    "0xc000005e": "no logon servers available",
    "0xc0000064": "user name does not exist",
    "0xc000006a": "wrong password",
    "0xc000006d": "bad user name or password",
    "0xc000006e": "account restriction",
    "0xc000006f": "outside authorized hours",
    "0xc0000070": "unauthorized workstation",
    "0xc0000071": "password expired",
    "0xc0000072": "account disabled",
    "0xc00000dc": "domain controller in the wrong state",
    "0xc0000133": "clocks too far apart",
    "0xc000015b": "logon type not granted",
    "0xc000018c": "trust relationship failed",
    "0xc0000192": "netlogon service not started",
    "0xc0000193": "account expired",
    "0xc0000224": "password must be changed",
    "0xc0000225": "not found (a fault in Windows)",
    "0xc0000234": "account locked out",
    "0xc00002ee": "an error during logon",
    "0xc0000413": "authentication firewall",
}
"""NTSTATUS of logons (4625, 4776), in lower case."""

KERBEROS_RESULTS = {
    "0x0": "KDC_ERR_NONE",
    "0x1": "KDC_ERR_NAME_EXP",
    "0x2": "KDC_ERR_SERVICE_EXP",
    "0x3": "KDC_ERR_BAD_PVNO",
    "0x6": "KDC_ERR_C_PRINCIPAL_UNKNOWN",
    "0x7": "KDC_ERR_S_PRINCIPAL_UNKNOWN",
    "0x8": "KDC_ERR_PRINCIPAL_NOT_UNIQUE",
    "0x9": "KDC_ERR_NULL_KEY",
    "0xa": "KDC_ERR_CANNOT_POSTDATE",
    "0xb": "KDC_ERR_NEVER_VALID",
    "0xc": "KDC_ERR_POLICY",
    "0xd": "KDC_ERR_BADOPTION",
    "0xe": "KDC_ERR_ETYPE_NOSUPP",
    "0xf": "KDC_ERR_SUMTYPE_NOSUPP",
    "0x10": "KDC_ERR_PADATA_TYPE_NOSUPP",
    "0x11": "KDC_ERR_TRTYPE_NOSUPP",
    "0x12": "KDC_ERR_CLIENT_REVOKED",
    "0x13": "KDC_ERR_SERVICE_REVOKED",
    "0x14": "KDC_ERR_TGT_REVOKED",
    "0x17": "KDC_ERR_KEY_EXPIRED",
    "0x18": "KDC_ERR_PREAUTH_FAILED",
    "0x19": "KDC_ERR_PREAUTH_REQUIRED",
    "0x1a": "KDC_ERR_SERVER_NOMATCH",
    "0x1b": "KDC_ERR_MUST_USE_USER2USER",
    "0x1c": "KDC_ERR_PATH_NOT_ACCEPTED",
    "0x1d": "KDC_ERR_SVC_UNAVAILABLE",
    "0x1f": "KRB_AP_ERR_BAD_INTEGRITY",
    "0x20": "KRB_AP_ERR_TKT_EXPIRED",
    "0x21": "KRB_AP_ERR_TKT_NYV",
    "0x22": "KRB_AP_ERR_REPEAT",
    "0x23": "KRB_AP_ERR_NOT_US",
    "0x24": "KRB_AP_ERR_BADMATCH",
    "0x25": "KRB_AP_ERR_SKEW",
    "0x29": "KRB_AP_ERR_MODIFIED",
    "0x3c": "KRB_ERR_GENERIC",
}

ENCRYPTION_TYPES = {
    "0x1": "DES-CBC-CRC",
    "0x3": "DES-CBC-MD5",
    "0x11": "AES128-CTS-HMAC-SHA1-96",
    "0x12": "AES256-CTS-HMAC-SHA1-96",
    "0x13": "AES128-CTS-HMAC-SHA256-128",
    "0x14": "AES256-CTS-HMAC-SHA384-192",
    "0x17": "RC4-HMAC",
    "0x18": "RC4-HMAC-EXP",
    "0xffffffff": "FAIL",
}

SERVICE_STARTS = {"0": "boot", "1": "system", "2": "auto", "3": "manual", "4": "disabled"}

DNS_TYPES = {
    "1": "A", "2": "NS", "5": "CNAME", "6": "SOA", "12": "PTR", "15": "MX", "16": "TXT", "28": "AAAA", "33": "SRV",
    "255": "ANY",
}  # fmt: skip
