"""What people are told of what the libraries say. `reasons.txt` holds what was seen."""

from __future__ import annotations

from pathlib import Path

import pytest

from littlebigcluster.reasons import reason, server


def recorded() -> list[tuple[str, str, str]]:
    """Case, reason and message of each."""
    parts = Path(__file__).with_name("reasons.txt").read_text().split("\n## ")[1:]
    return [(case, told.removeprefix("=> "), text) for case, told, text in (part.split("\n", 2) for part in parts)]


@pytest.mark.parametrize(("case", "told", "text"), recorded(), ids=[case for case, *_ in recorded()])
def test_a_message_becomes_a_reason_of_one_line(case: str, told: str, text: str) -> None:
    assert reason(text) == told
    assert len(told) < 120
    assert not any(inside in told for inside in ("Error {", "{", "<", "::"))


def test_there_are_enough_messages_of_both_libraries() -> None:
    cases = [case for case, *_ in recorded()]
    assert sum(case.startswith("obstore: ") for case in cases) >= 15
    assert sum(case.startswith("wreq: ") for case in cases) >= 12
    assert len(cases) == len(set(cases))


def test_a_message_never_seen_is_shortened() -> None:
    assert reason(
        "Generic S3 error: Error performing GET http://a/b?sig=x in 1.5ms - never\nseen\n\nDebug source:\nX {}"
    ) == ("never seen")
    assert reason("") == ""
    assert len(reason("word " * 1000)) < 200


def test_what_a_url_or_an_answer_says_is_not_taken_for_what_happened() -> None:
    url = "http://host/ConnectionRefused/InvalidCertificate"
    assert reason(
        f'Error performing GET {url} in 1ms - HTTP error: Os {{ code: 5, kind: Other, message: "I/O error" }}'
    ) == ("I/O error")
    answered = f"Error performing GET {url} in 1ms - Server returned non-2xx status code: 500 Oh: ConnectionRefused"
    assert reason(answered) == "it answers 500 Oh (ConnectionRefused)"


def test_the_server_is_named_without_anything_that_may_be_secret() -> None:
    assert server("GET https://user:secret@host:9000/path?sig=secret in 1ms") == "https://host:9000"
    assert server("uri: Some( http://[::1]:9/x, )") == "http://[::1]:9"
    assert server("no URL at all") == ""
