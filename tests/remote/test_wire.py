"""Both ends write the same frames, however the stream is cut, and neither trusts the other."""

import ast
import os
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sysvm.api.reasons import Reason
from sysvm.patching import framing, results
from sysvm.patching.remote import journal, wire

messages = st.dictionaries(
    st.text(max_size=8), st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists), max_size=4
)
frames = st.lists(messages | st.binary(max_size=600), max_size=8)


def pipe_of(content: bytes) -> int:
    source, sink = os.pipe()
    os.set_blocking(sink, False)
    assert os.write(sink, content) == len(content)
    os.close(sink)
    return source


def by_the_vm(sent: list) -> bytes:
    source, sink = os.pipe()
    try:
        vm = wire.Wire(-1, sink)
        vm.open()
        for one in sent:
            vm.send_bytes(one) if isinstance(one, bytes) else vm.send(one)
        os.set_blocking(source, False)
        return os.read(source, 1 << 20)
    finally:
        os.close(source)
        os.close(sink)


@settings(max_examples=40, deadline=None)
@given(sent=frames, noise=st.binary(max_size=50), data=st.data())
def test_the_operator_reads_what_the_vm_writes_however_it_is_cut(sent, noise, data):
    stream = noise.replace(b"\0", b"") + by_the_vm(sent)
    decoder = framing.Decoder()
    got: list[framing.Frame] = []
    while stream:
        cut = data.draw(st.integers(1, len(stream)))
        got += decoder.feed(stream[:cut])
        stream = stream[cut:]
    decoder.finish()
    wanted = [one for one in sent if one != b""]
    assert [f.content if isinstance(f, framing.BytesFrame) else dict(f.value) for f in got] == wanted


@settings(max_examples=40, deadline=None)
@given(sent=frames)
def test_the_vm_reads_what_the_operator_writes(sent):
    stream = b"".join(
        b"".join(framing.encode_bytes(one)) if isinstance(one, bytes) else framing.encode_json(one) for one in sent
    )
    source = pipe_of(stream)
    try:
        vm = wire.Wire(source, -1)
        for one in sent:
            if isinstance(one, bytes):
                assert one == b"" or vm.receive_bytes() == one
            else:
                assert vm.receive() == one
        assert vm.receive() is None
    finally:
        os.close(source)


@settings(max_examples=40, deadline=None)
@given(content=st.binary(min_size=1, max_size=400))
def test_what_is_no_frame_ends_the_session_and_nothing_else(content):
    source = pipe_of(content)
    try:
        try:
            assert isinstance(wire.Wire(source, -1).receive(), dict)
        except wire.Closed:
            pass
    finally:
        os.close(source)
    decoder = framing.Decoder(expect_magic=False)
    try:
        for frame in decoder.feed(content):
            assert isinstance(frame, framing.JSONFrame | framing.BytesFrame)
        decoder.finish()
    except framing.ProtocolError:
        pass


def test_sizes_are_bounded_before_anything_is_kept():
    huge = b"J" + (framing.MAX_JSON + 1).to_bytes(4, "big")
    with pytest.raises(framing.ProtocolError, match="at most"):
        list(framing.Decoder(expect_magic=False).feed(huge))
    source = pipe_of(huge)
    with pytest.raises(wire.Closed):
        wire.Wire(source, -1).receive()
    os.close(source)


def test_long_answers_travel_compressed_and_arrive_whole():
    answer = {"facts": [{"path": f"/opt/cloud/bin/file-{n}", "mode": 0o644, "kind": "file"} for n in range(2000)]}
    stream = by_the_vm([answer, b"bytes", {"short": "one"}])
    assert len(stream) < len(framing.encode_json(answer)) / 4
    first, second, third = framing.Decoder().feed(stream)
    assert isinstance(first, framing.JSONFrame)
    assert isinstance(second, framing.BytesFrame)
    assert isinstance(third, framing.JSONFrame)
    assert (first.value, first.size) == (answer, len(framing.encode_json(answer)) - 5)
    assert (second.content, third.value) == (b"bytes", {"short": "one"})


@pytest.mark.parametrize(
    "payload",
    [
        zlib.compress(b" " * (framing.MAX_JSON + 1)),
        zlib.compress(b"{}")[:-1],
        zlib.compress(b"{}") + b"more",
        b"not packed",
        b"",
        zlib.compress(b"[]"),
    ],
)
def test_a_compressed_frame_is_bounded_and_whole_or_refused(payload):
    stream = b"Z" + len(payload).to_bytes(4, "big") + payload
    with pytest.raises(framing.ProtocolError):
        list(framing.Decoder(expect_magic=False).feed(stream))


def test_a_shell_that_says_something_else_is_quoted():
    decoder = framing.Decoder()
    assert list(decoder.feed(b"python3: command not found\n")) == []
    with pytest.raises(framing.ProtocolError, match="command not found"):
        decoder.finish()
    with pytest.raises(framing.ProtocolError, match="without end"):
        list(framing.Decoder().feed(b"x" * (framing.MAX_NOISE + 1)))


def test_both_ends_agree_on_every_constant():
    for name in ("VERSION", "MAGIC", "MAX_JSON", "MAX_BYTES"):
        assert getattr(wire, name) == getattr(framing, name)
    phases = {value for name, value in vars(journal).items() if name.isupper() and isinstance(value, str)}
    assert phases == {phase.value for phase in results.JournalPhase}
    assert {phase.value for phase in results.JournalPhase if phase.is_final} == set(journal.FINAL)


def test_every_reason_that_the_program_says_is_one_of_the_operators():
    known = {reason.value for reason in Reason}
    said = set()
    for path in Path(wire.__file__).parent.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Call(func=ast.Name(id="Failure"), args=[ast.Constant(value=word), *_]):
                    said.add(word)
    assert len(said) > 10
    assert said <= known
