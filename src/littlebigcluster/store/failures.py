"""What obstore's exceptions mean: is the object absent, may it help to try again, and what should one do."""

from __future__ import annotations

import logging
import re

from obstore.exceptions import (
    BaseError,
    NotFoundError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
)

from littlebigcluster.errors import StoreUnavailable
from littlebigcluster.reasons import (
    ELSEWHERE,
    NO_PLAIN_HTTP,
    NOT_TLS,
    REFUSED,
    SILENT,
    UNKNOWN_HOST,
    UNTRUSTED,
    reason,
    server,
)

logger = logging.getLogger(__name__)

# Failures as obstore raises them: its own tree, and FileNotFoundError and its like.
FAILURES = (BaseError, OSError)

# What S3, GCS and Azure say when not the object but what it should lie in is absent.
_NO_BUCKET = re.compile(
    r"<Code>(NoSuchBucket|ContainerNotFound|ContainerBeingDeleted)</Code>"
    r"|The specified (bucket|container) does not exist"
)
_REFUSED = re.compile(r"status code: (401|403)\b")
_OUT_OF_RANGE = re.compile(r"status code: 416\b|Wanted range starting")
_QUERY = re.compile(r"\?\S+")
_WHO_ARE_WE = re.compile(r"//(169\.254\.(169\.254|170\.2)|metadata\.google\.internal)\b")
"""Without credentials the machine itself is asked for some."""

_LOOK_AT_THE_ENDPOINT = "; see whether the store is up, and check the endpoint and the network"
_ADVICE = {
    REFUSED: _LOOK_AT_THE_ENDPOINT,
    UNKNOWN_HOST: _LOOK_AT_THE_ENDPOINT,
    SILENT: _LOOK_AT_THE_ENDPOINT,
    UNTRUSTED: "; see whether the endpoint is right, and this machine trusts its authority",
    NOT_TLS: "; if it is to be plain http, the endpoint begins with http://, and allow_http=true is needed",
    ELSEWHERE: "; set AWS_REGION to that",
}


class MissingObject(Exception):
    """There is no object of that name (inside this package only)."""


class OutOfRange(Exception):
    """The object ends before the range begins (inside this package only)."""


def translated(what: str, url: str, error: BaseException) -> Exception:
    """`error`, raised by obstore while it was to `what` at `url`, as what our stores raise.

    Only the log, at DEBUG, has the whole text; and that without query strings, which may hold signatures.
    """
    text = str(error)
    no_bucket = _NO_BUCKET.search(text)
    if not no_bucket and isinstance(error, FileNotFoundError | NotFoundError):
        return MissingObject(what)
    if _OUT_OF_RANGE.search(text):
        return OutOfRange(what)
    logger.debug("cannot %s at %s: %s", what, url, _QUERY.sub("", text))
    if no_bucket:
        return _fatal(what, url, "there is no such bucket or container; create it, or correct the name")
    if _WHO_ARE_WE.search(text):
        return StoreUnavailable(
            f"cannot {what} at {url}: no credentials were found, nor given by this machine ({reason(text)});"
            " set them in the environment (AWS_ACCESS_KEY_ID and so on)"
        )
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or _REFUSED.search(text):
        advice = "the store refuses access; check the credentials, their rights on the bucket, and the clock"
        return _fatal(what, url, advice)
    if isinstance(error, NotSupportedError | NotImplementedError):
        return _fatal(what, url, f"this store cannot do that ({reason(text)})")
    why, whose = reason(text), server(text)
    if why == NO_PLAIN_HTTP:
        return _fatal(what, url, "plain http must be allowed: add ?allow_http=true to the location of the store")
    return StoreUnavailable(f"cannot {what} at {url}: {whose}{': ' if whose else ''}{why}{_ADVICE.get(why, '')}")


def _fatal(what: str, url: str, why: str) -> StoreUnavailable:
    return StoreUnavailable(f"cannot {what} at {url}: {why}", transient=False)
