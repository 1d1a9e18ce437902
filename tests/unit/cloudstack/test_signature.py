"""The signature is the one that the server computes, for every value that can be sent.

The server's rules, written here a second time and from the other side: the parameters as they arrive, decoded; names
sorted as sent without `signature`; values through java.net.URLEncoder (letters, digits and `.-*_` stay, a blank becomes
`+` and then `%20`); the whole text in lower case; HMAC-SHA1; base64 (CloudStack 4.21 ApiServer.verifyRequest).
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.cloudstack.recorded import API_KEY, FULL, SECRET_KEY, Server, answer, client

from sysvm.cloudstack.transport import _Signer

KEPT = set(string.ascii_letters + string.digits + ".-*_")


def url_encoder(text: str) -> str:
    """java.net.URLEncoder with UTF-8, then blanks as the server writes them."""
    encoded = "".join(
        chr(byte) if chr(byte) in KEPT else "+" if byte == 0x20 else f"%{byte:02X}" for byte in text.encode()
    )
    return encoded.replace("+", "%20")


def signature_of(params: dict[str, str], secret: str) -> str:
    text = "&".join(f"{name}={url_encoder(params[name])}" for name in sorted(params) if name != "signature")
    return base64.b64encode(hmac.new(secret.encode(), text.lower().encode(), hashlib.sha1).digest()).decode()


AWKWARD = [
    "plain",
    "with blanks  and + signs",
    "https://user@host:8080/~builder/systemvm-kvm.qcow2.bz2?a=b&c=%41#d",
    "a*b.c-d_e~f",
    "Zürich, 東京",
    "[1].key=value;/\\'\"<>",
    "UPPER lower",
]


@pytest.mark.parametrize("value", AWKWARD)
async def test_the_server_comes_to_the_same_signature(server: Server, value: str) -> None:
    server.says(answer({"registertemplateresponse": {}}))
    async with client(server, may_change=FULL) as cloud:
        await cloud.change("registerTemplate", name=value, url=value, details={"rootDiskController": value})
    [seen] = server.seen
    assert seen.form["name"] == value
    assert seen.form["details[0].rootDiskController"] == value
    assert seen.form["apiKey"] == API_KEY
    assert seen.form["signature"] == signature_of(seen.form, SECRET_KEY)


@given(
    st.dictionaries(
        st.from_regex(r"[a-zA-Z]{1,12}(\[[0-9]\]\.[a-z]{1,5})?", fullmatch=True),
        st.text(st.characters(exclude_categories=["Cs"])),
        min_size=1,
    )
)
def test_any_parameters_are_signed_as_the_server_signs_them(params: dict[str, str]) -> None:
    params.pop("signature", None)
    signed = dict(params)
    _Signer("http://host/client/api", "k", SECRET_KEY)._sign(signed)
    assert signed.pop("signature") == signature_of(params, SECRET_KEY)
    assert signed == params


def test_a_signature_that_was_computed_by_hand() -> None:
    """printf %s 'apikey=k&command=listzones&response=json' | openssl dgst -sha1 -hmac s -binary | base64"""
    params = {"command": "listZones", "response": "json", "apiKey": "k"}
    _Signer("http://host/client/api", "k", "s")._sign(params)
    assert params["signature"] == "61eKw+/Y/oFdgsGvcnH0jkA/mk4="
