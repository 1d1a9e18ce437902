"""Keys and signatures appear in no error, no log, no `repr`, whatever the server answers."""

from __future__ import annotations

import logging
import traceback
from datetime import timedelta
from urllib.parse import quote

import pytest
from aiohttp import web
from tests.unit.cloudstack.recorded import (
    API_KEY,
    FULL,
    SECRET_KEY,
    Reply,
    Server,
    access,
    answer,
    client,
    cut,
    recorded,
    silent,
)

from sysvm.cloudstack.errors import AccessInvalid, CloudStackError
from sysvm.cloudstack.transport import Access, Credentials


async def echo(request: web.Request) -> web.StreamResponse:
    """What a debugging proxy might do: the whole request in the answer."""
    form = {name: str(value) for name, value in (await request.post()).items()}
    return answer({"listzonesresponse": {"errorcode": 530, "errortext": f"{form} {SECRET_KEY}"}}, 530)


async def echo_page(request: web.Request) -> web.StreamResponse:
    return web.Response(text=await request.text() + SECRET_KEY, content_type="text/html")


async def echo_type(request: web.Request) -> web.StreamResponse:
    return web.Response(body=b"x", headers={"Content-Type": f"text/{API_KEY}"})


async def echo_redirect(request: web.Request) -> web.StreamResponse:
    return web.Response(status=302, headers={"Location": f"http://elsewhere/{API_KEY}?{await request.text()}"})


async def encoded(request: web.Request) -> web.StreamResponse:
    return answer({"listzonesresponse": {"errorcode": 431, "errortext": quote(f"apiKey={SECRET_KEY}+/=")}}, 431)


REPLIES: list[Reply] = [
    recorded("error.wrongsecret"),
    recorded("error.user.patchSystemVm"),
    cut,
    silent,
    echo,
    echo_page,
    echo_type,
    echo_redirect,
    encoded,
    answer(["x"]),
]


@pytest.mark.parametrize("changes", [False, True], ids=["read", "change"])
@pytest.mark.parametrize("reply", REPLIES)
async def test_no_error_and_no_log_holds_a_key(
    server: Server, reply: Reply, changes: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    server.says(reply)
    async with client(server, may_change=FULL, timeout=timedelta(seconds=0.2)) as cloud:
        with pytest.raises(CloudStackError) as caught:
            await (cloud.submit("restartNetwork", id="a") if changes else cloud.call("listZones"))
        said = [repr(cloud), str(cloud)]
    signature = server.seen[0].form["signature"]
    logging.getLogger("sysvm").error("it failed", exc_info=caught.value)
    error = caught.value
    said += [str(error), repr(error), repr(vars(error)), caplog.text]
    said += traceback.format_exception(error)
    for text in said:
        for secret in (API_KEY, SECRET_KEY, signature, quote(signature, safe="")):
            assert secret not in text


def test_no_value_shows_its_keys() -> None:
    credentials = Credentials(API_KEY, SECRET_KEY)
    for value in (credentials, access("https://cloud/client/api"), [credentials]):
        assert API_KEY not in repr(value)
        assert SECRET_KEY not in f"{value}"


@pytest.mark.parametrize("bad", ["", "a key", "key\n", "schlüssel", "tab\tkey"])
def test_a_key_that_cannot_be_one_is_refused_without_being_shown(bad: str) -> None:
    for keys in ((bad, "s"), ("k", bad)):
        with pytest.raises(AccessInvalid) as caught:
            Credentials(*keys)
        assert not bad or bad not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("http://cloud:8096/client/api", "integration port"),
        ("https://cloud:8096/client/api", "integration port"),
        ("http://cloud:08096", "integration port"),
        ("http://[::1]:8096/", "integration port"),
        ("http://admin:secret@cloud/client/api", "must not hold a user"),
        ("ftp://cloud/client/api", "must begin with https"),
        ("cloud/client/api", "must begin with https"),
        ("https:///client/api", "must begin with https"),
        ("https://cloud/client/api?x=y", "must end with its path"),
        ("https://cloud/client/api#x", "must end with its path"),
        ("https://cloud:99999/client/api", "cannot be read"),
        ("https://[::1/client/api", "cannot be read"),
    ],
)
def test_a_url_that_must_not_be_asked_is_refused_with_a_sentence(url: str, sentence: str) -> None:
    with pytest.raises(AccessInvalid, match=sentence) as caught:
        access(url)
    assert "secret@" not in str(caught.value)


def test_the_port_is_meant_and_not_the_digits() -> None:
    assert isinstance(access("https://cloud8096:8080/8096/client/api"), Access)


@pytest.mark.parametrize(
    "bundle", ["", "no certificate", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_a_bundle_without_certificates_is_refused(bundle: str) -> None:
    with pytest.raises(AccessInvalid, match="CA bundle"):
        access("https://cloud/client/api", ca_bundle=bundle)
