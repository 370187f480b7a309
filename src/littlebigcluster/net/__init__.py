"""HTTP/2 and TLS. Knows nothing of clusters: a server, a client of one peer, certificates, addresses."""

from littlebigcluster.net.address import format_address, is_loopback, is_wildcard, parse_address, reachable_host
from littlebigcluster.net.asgi import ASGIApp, Message, Receive, Scope, Send
from littlebigcluster.net.client import Body, Client
from littlebigcluster.net.network import NETWORK, Network
from littlebigcluster.net.pem import Pem, load_identity
from littlebigcluster.net.responses import Response, StreamResponse
from littlebigcluster.net.routes import RETRY_LATER, Answer, Crowded, Refused, Request, Router
from littlebigcluster.net.server import CUT_OFF_HEADER, Server
from littlebigcluster.net.tls import Authority, NodeIdentity, PeerName, bundle, peer_name, shows_certificate

__all__ = [
    "CUT_OFF_HEADER",
    "NETWORK",
    "RETRY_LATER",
    "ASGIApp",
    "Answer",
    "Authority",
    "Body",
    "Client",
    "Crowded",
    "Message",
    "Network",
    "NodeIdentity",
    "PeerName",
    "Pem",
    "Receive",
    "Refused",
    "Request",
    "Response",
    "Router",
    "Scope",
    "Send",
    "Server",
    "StreamResponse",
    "bundle",
    "format_address",
    "is_loopback",
    "is_wildcard",
    "load_identity",
    "parse_address",
    "peer_name",
    "reachable_host",
    "shows_certificate",
]
