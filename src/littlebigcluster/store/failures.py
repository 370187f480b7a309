"""What obstore's exceptions mean: is the object absent, may it help to try again, and what should one do."""

from __future__ import annotations

import re

from obstore.exceptions import (
    BaseError,
    NotFoundError,
    NotSupportedError,
    PermissionDeniedError,
    UnauthenticatedError,
)

from littlebigcluster.errors import StoreUnavailable

# Failures as obstore raises them: its own tree, and FileNotFoundError and its like.
FAILURES = (BaseError, OSError)

# What S3, GCS and Azure say when not the object but what it should lie in is absent.
_NO_BUCKET = re.compile(
    r"<Code>(NoSuchBucket|ContainerNotFound|ContainerBeingDeleted)</Code>"
    r"|The specified (bucket|container) does not exist"
)
_REFUSED = re.compile(r"status code: (401|403)\b")
_NO_HTTPS = re.compile(r"URL scheme is not allowed|Error performing [A-Z]+ http://.*builder error")
_OUT_OF_RANGE = re.compile(r"status code: 416\b|Wanted range starting")
_QUERY = re.compile(r"\?\S+")


class MissingObject(Exception):
    """There is no object of that name (inside this package only)."""


class OutOfRange(Exception):
    """The object ends before the range begins (inside this package only)."""


def translated(what: str, url: str, error: BaseException) -> Exception:
    """`error`, raised by obstore while it was to `what` at `url`, as what our stores raise.

    The text is shortened to its first line and loses query strings: they may hold signatures.
    """
    text = str(error)
    if _NO_BUCKET.search(text):
        return _fatal(what, url, "there is no such bucket or container; create it, or correct the name")
    if isinstance(error, FileNotFoundError | NotFoundError):
        return MissingObject(what)
    if isinstance(error, PermissionDeniedError | UnauthenticatedError) or _REFUSED.search(text):
        advice = "the store refuses access; check the credentials, their rights on the bucket, and the clock"
        return _fatal(what, url, advice)
    if _NO_HTTPS.search(text):
        return _fatal(what, url, "plain http must be allowed: add ?allow_http=true to the location of the store")
    if isinstance(error, NotSupportedError | NotImplementedError):
        return _fatal(what, url, f"this store cannot do that ({_brief(text)})")
    if _OUT_OF_RANGE.search(text):
        return OutOfRange(what)
    return StoreUnavailable(f"cannot {what} at {url}: {_brief(text)}{_advice(text)}")


def _fatal(what: str, url: str, reason: str) -> StoreUnavailable:
    return StoreUnavailable(f"cannot {what} at {url}: {reason}", transient=False)


def _brief(text: str) -> str:
    first_line = text.strip().split("\n", 1)[0]
    return _QUERY.sub("", first_line.removesuffix('<?xml version="1.0" encoding="UTF-8"?>')).rstrip(" :")[:500]


def _advice(text: str) -> str:
    if "169.254.169.254" in text or ("metadata" in text and "Error performing" in text):
        return "; no credentials were found, set them in the environment (AWS_ACCESS_KEY_ID and so on)"
    if "error sending request" in text:
        return "; check the endpoint and the network"
    return ""
