"""Why a connection or a request failed, in a few words. The libraries below us (`obstore`, `wreq`) tell it in pages of
their inner structure, `Error { kind: Connect, source: Some(...) }`; what was seen of them is in `tests/reasons.txt`."""

from __future__ import annotations

import re

REFUSED = "nobody listens there (connection refused)"
UNKNOWN_HOST = "there is no host of that name"
SILENT = "it does not answer"
BROKEN = "the connection broke"
UNTRUSTED = "its certificate is not by a trusted authority, or for another address"
NOT_TLS = "it does not speak TLS"
NOT_PLAIN_HTTP2 = "it does not speak HTTP/2 without TLS"
NO_PLAIN_HTTP = "plain http is not allowed"
ELSEWHERE = "it sends us elsewhere: the bucket is in another region"

_URL = re.compile(r"https?://[^\s,)]+")
_SERVER = re.compile(r"(https?://)(?:[^\s/?#@]*@)?([^\s/?#,)]+)")
_STATUS = re.compile(r"status code: (\d{3} [\w' -]*\w)(?:: ?(.*?))? ?(?:Debug source:|$)")
_CODE = re.compile(r"<Code>([^<]*)</Code>")
_MESSAGE = re.compile(r"<Message>([^<]*)</Message>")
_OF_THE_SYSTEM = re.compile(r'\bOs \{ code: \d+, kind: \w+, message: "([^"]+)"')
_FRAME = re.compile(
    r"^Generic \w+ error: |Error performing [\w ]+? in [\d.]+[a-zµ]+ - |Error performing [\w ]+: |HTTP error: "
)
_MOST_CHARACTERS = 160

_KNOWN = [
    (re.compile(pattern), reason)
    for pattern, reason in (
        (r"\bConnectionRefused\b", REFUSED),
        (r'"dns error"', UNKNOWN_HOST),
        (r"\bCERTIFICATE_VERIFY_FAILED\b|\bInvalidCertificate\b", UNTRUSTED),
        (r"\bWRONG_VERSION_NUMBER\b|\bInvalidContentType\b", NOT_TLS),
        (r"\bFRAME_SIZE_ERROR, Library\b", NOT_PLAIN_HTTP2),
        (r"\bBadScheme\b|URL scheme is not allowed", NO_PLAIN_HTTP),
        (r"\bBareRedirect\b", ELSEWHERE),
        (r"\bTimedOut\b|\bKeepAliveTimedOut\b", SILENT),
    )
]
_BREAKS = re.compile(
    r"\b(BrokenPipe|ConnectionReset|ConnectionAborted|UnexpectedEof|IncompleteMessage|ChannelClosed|Canceled|GoAway|Reset"
    r"|SYSCALL|ZERO_RETURN)\b"
)


def reason(text: str) -> str:
    """What such a message means to a person: one line, without names of what is inside the library."""
    text = _URL.sub("", " ".join(text.split()))
    if answer := _STATUS.search(text):
        return f"it answers {answer[1]}{_told(answer[2] or '')}"
    for pattern, known in _KNOWN:
        if pattern.search(text):
            return known
    if system := _OF_THE_SYSTEM.search(text):
        return system[1][:1].lower() + system[1][1:] if system[1][1:2].islower() else system[1]
    return BROKEN if _BREAKS.search(text) else _shortened(text)


def server(text: str) -> str:
    """The server that such a message speaks of, and nothing that may be secret; empty if it speaks of none."""
    found = _SERVER.search(text)
    return found[1] + found[2] if found else ""


def _told(body: str) -> str:
    """What the body of an answer explains, in brackets."""
    parts = [found[1] for found in (_CODE.search(body), _MESSAGE.search(body)) if found]
    told = ": ".join(parts) if parts else "" if "<" in body else body
    return f" ({_shortened(told).rstrip('.')})" if told else ""


def _shortened(text: str) -> str:
    text = _FRAME.sub("", text.split(" Debug source:", 1)[0]).strip(" :")
    return text if len(text) <= _MOST_CHARACTERS else text[:_MOST_CHARACTERS].rstrip() + "..."
