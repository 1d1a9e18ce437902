"""What is said about a key that cannot be used quotes none of it, in whatever way it is written down."""

from __future__ import annotations

import dataclasses
import io
import json
import logging
import traceback

import asyncssh
import pytest

from sysvm.api.endpoint import HostKeyPolicy, SystemVMType
from sysvm.patching.keys import KeyUnreadable, load_known_hosts, load_private_key
from sysvm.patching.results import SSHAccount, Target
from sysvm.telemetry.logs import JsonFormatter

CANARY = b"canary7f3a"


def key_text(form: str) -> bytes:
    return asyncssh.generate_private_key("ecdsa-sha2-nistp256").export_private_key(form)


def bent() -> list[bytes]:
    texts = []
    for form in ("openssh", "pkcs1-pem", "pkcs8-pem"):
        key = key_text(form)
        middle = len(key) // 2
        texts += [
            key[:middle] + CANARY + key[middle:],
            key[:middle] + CANARY,
            CANARY + b"\n" + key[middle:],
            key.replace(b"BEGIN", b"BEGIN " + CANARY),
            CANARY + b": x\n" + key[:middle],
        ]
    return [
        *texts,
        CANARY,
        b"\xff" + CANARY,
        b"ssh-rsa " + CANARY + b" " + CANARY,
        b"-----BEGIN " + CANARY + b"-----\n",
    ]


def said(error: BaseException) -> str:
    """All that a log, a status or a crash could show of an error, its causes included."""
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    record = logging.LogRecord("x", logging.ERROR, "x", 1, "%s", (error,), (type(error), error, error.__traceback__))
    handler.emit(record)
    assert json.loads(stream.getvalue())["error"]
    return stream.getvalue() + repr(error) + "".join(traceback.format_exception(error))


@pytest.mark.parametrize("text", bent(), ids=range(len(bent())))
def test_a_key_that_cannot_be_read_is_not_quoted(text: bytes) -> None:
    try:
        load_private_key(text)
    except KeyUnreadable as error:
        assert CANARY.decode() not in said(error)
        assert text[-40:].decode(errors="replace") not in said(error)


@pytest.mark.parametrize(
    "line", ["{} x", "@{} host ssh-ed25519 AAAA", "host ssh-ed25519 {}", "|1|{}|x ssh-rsa AAAA", "@cert-authority {}"]
)
def test_known_hosts_that_cannot_be_read_are_not_quoted(line: str) -> None:
    try:
        load_known_hosts(line.format(CANARY.decode()))
    except KeyUnreadable as error:
        assert CANARY.decode() not in said(error)


def test_a_login_shows_its_key_in_no_text_of_itself() -> None:
    key = key_text("openssh")
    account = SSHAccount(user="root", port=3922, private_key=key, host_key_policy=HostKeyPolicy.STRICT, known_hosts="x")
    target = Target(name="r-1-VM", type=SystemVMType.ROUTER, address="::1", account=account)
    for value in (account, target):
        for text in (repr(value), str(value), f"{value}", f"{dataclasses.replace(value)!r}"):
            assert b"".join(key.splitlines()[1:2]).decode() not in text
