"""What is read out of the messages of the library. Those here were seen; those of later versions the contract shows."""

from __future__ import annotations

import pytest
from wreq.exceptions import RequestError

from littlebigcluster.errors import PeerUnavailable
from littlebigcluster.net.responses import failure, given_back

NONE = "None"
SOME = 'Some(Connected { alpn: H2, extra: "connect_info: None } }" })'


def message(kind: str, source: str, connection: str) -> str:
    return f"is_request error: source: Error {{ kind: {kind}, source: Some({source}), connect_info: {connection} }} }}"


def of_peer(frame: str) -> str:
    return message("SendRequest", f"netty::Error(Http2, Error {{ kind: {frame}, Remote) }})", SOME)


NEVER_CONNECTED = [
    message("Connect", 'ConnectError("tcp connect error", 127.0.0.1:1, Os { code: 104, kind: ConnectionReset })', NONE),
    message("SendRequest", "netty::Error(Io, Os { code: 104, kind: ConnectionReset })", NONE),
]
GIVEN_BACK = [
    message("SendRequest", "netty::Error(ChannelClosed)", NONE),
    message("Canceled", 'netty::Error(Canceled, "connection closed")', SOME),
    of_peer('GoAway(b"", NO_ERROR'),
    of_peer("Reset(StreamId(1), REFUSED_STREAM"),
]
IN_DOUBT = [
    message("SendRequest", "netty::Error(Io, Kind(ConnectionReset))", SOME),
    message("SendRequest", "netty::Error(ChannelClosed)", SOME),
    of_peer('GoAway(b"connect_info: None } }", ENHANCE_YOUR_CALM'),
    of_peer("Reset(StreamId(1), INTERNAL_ERROR"),
]


@pytest.mark.parametrize("text", [*NEVER_CONNECTED, *GIVEN_BACK, *IN_DOUBT])
def test_an_error_tells_whether_the_peer_may_have_begun(text: str) -> None:
    error = failure("POST /", RequestError(text), begun=False)
    assert isinstance(error, PeerUnavailable)
    assert error.sent is (text in IN_DOUBT)
    assert given_back(RequestError(text)) is (text in GIVEN_BACK)
