"""What a hostile VM can say: understood or refused with a sentence, and never kept without end."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz import promises
from sysvm.patching import framing
from sysvm.patching.framing import MAGIC, ProtocolError
from sysvm.patching.session import _Channel

keys = st.sampled_from(["id", "result", "report", "hello", "error", "version"]) | st.text(max_size=5)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=5),
    max_leaves=20,
)


def frame(payload: bytes, kind: bytes = b"J") -> bytes:
    return struct.pack(">cI", kind, len(payload)) + payload


@settings(deadline=2000)
@given(
    st.binary(max_size=50), st.lists(st.tuples(st.sampled_from([b"J", b"B", b"?"]), st.binary(max_size=80)), max_size=5)
)
def test_any_stream_is_understood_or_refused_with_a_sentence(noise: bytes, frames: list[tuple[bytes, bytes]]) -> None:
    stream = b"".join(frame(payload, kind) for kind, payload in frames)
    promises.wire(noise + MAGIC + stream)
    promises.wire(b"\0" + stream)


@settings(deadline=2000)
@given(values)
def test_any_message_is_understood_or_refused_with_a_sentence(value: object) -> None:
    promises.message(json.dumps(value).encode())


@pytest.mark.parametrize(
    "payload",
    [
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"a": ' + b"9" * 100_000 + b"}",
        b'{"a": "\xff"}',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
    ],
    ids=["depth-of-lists", "depth-of-objects", "digits", "no-utf-8", "nan", "infinity"],
)
def test_a_message_that_python_would_choke_on_is_refused(payload: bytes) -> None:
    assert promises.message(payload) is False


def test_messages_that_nobody_waits_for_are_not_kept_without_end() -> None:
    """While the operator sends contents it reads no answer: a VM that talks all the time must not fill its memory."""
    channel = _Channel("r-1-VM")
    channel.data_received(MAGIC, None)
    letter = frame(b'{"report": "' + b"x" * (4 << 20) + b'"}')
    for _ in range(40):
        channel.data_received(letter, None)
    assert isinstance(channel._end, ProtocolError)
    assert sum(isinstance(kept, framing.JSONFrame) for kept in channel._frames) < 20


def test_a_time_beyond_all_calendars_is_refused_not_raised() -> None:
    from sysvm.patching.observing import _time

    for seconds in (1e400, -1e400, float("nan"), 1e18, -1e18):
        with pytest.raises(ProtocolError):
            _time(seconds)
