"""The frames of the feed: whole again however the network cuts them."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from littlebigcluster.cluster import frames
from littlebigcluster.cluster.frames import Unpacker, pack, pack_json

KINDS = [frames.EPOCH, frames.NAMED, frames.KEEP_ALIVE, frames.MEMBERS, frames.GOODBYE, b"?"]


def unpack(pieces: list[bytes]) -> Iterator[tuple[bytes, bytes]]:
    unpacker = Unpacker()
    for piece in pieces:
        yield from unpacker.feed(piece)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(KINDS), st.binary(max_size=300))), st.lists(st.integers(1, 200), min_size=1))
def test_frames_come_out_as_they_went_in_wherever_the_stream_is_cut(
    sent: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    stream = b"".join(pack(*each) for each in sent)
    pieces, at = [], 0
    while at < len(stream):
        size = cuts[len(pieces) % len(cuts)]
        pieces.append(stream[at : at + size])
        at += size
    assert list(unpack(pieces)) == sent


def test_a_frame_that_is_not_complete_does_not_come_out() -> None:
    unpacker = Unpacker()
    frame = pack(frames.EPOCH, b"abc")
    assert list(unpacker.feed(frame[:-1])) == []
    assert list(unpacker.feed(frame[-1:])) == [(frames.EPOCH, b"abc")]


def test_a_length_beyond_all_measure_is_refused_before_anything_of_it_is_kept() -> None:
    frame = pack(frames.EPOCH, b"")[:1] + (frames.MAX_FRAME_BYTES + 1).to_bytes(4, "big")
    with pytest.raises(ValueError, match=str(frames.MAX_FRAME_BYTES)):
        list(Unpacker().feed(frame))


def test_json_frames_carry_json() -> None:
    [(kind, payload)] = unpack([pack_json(frames.KEEP_ALIVE, {"term": 3, "text": "ä"})])
    assert (kind, json.loads(payload)) == (frames.KEEP_ALIVE, {"term": 3, "text": "ä"})
