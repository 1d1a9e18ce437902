"""The door to the API server, against a scripted one: what each answer becomes, and who sees a write when."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from kubernetes.aio.config import incluster_config

from sysvm.kube import errors
from sysvm.kube.cache import Store
from sysvm.kube.client import Cluster, Write
from sysvm.kube.errors import KubeError
from sysvm.kube.login import Login
from sysvm.kube.objects import Key, Object, Resource
from sysvm.kube.transport import ClusterOptions, RequestObserver

WIDGET = Resource("example.io", "v1", "widgets", "Widget")
NODE = Resource("", "v1", "nodes", "Node", namespaced=False)

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Answers in order; the last answer goes on for ever. Remembers what it was asked."""

    def __init__(self, *answers: web.Response | Answer) -> None:
        self.answers = list(answers)
        self.requests: list[web.Request] = []
        self.bodies: list[Any] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        text = await request.text()
        self.bodies.append(json.loads(text) if text else None)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, web.Response):
            return web.Response(status=answer.status, text=answer.text, headers=answer.headers)
        return await answer(request)


def said(status: int, body: object, **headers: str) -> web.Response:
    return web.Response(status=status, text=json.dumps(body), headers=headers)


def refused(status: int, reason: str, message: str, **details: object) -> web.Response:
    body = {"kind": "Status", "status": "Failure", "message": message, "reason": reason, "code": status}
    return said(status, {**body, "details": details})


def widget(version: int = 5, **metadata: object) -> Object:
    named = {"namespace": "n", "name": "a", "uid": "u1", "resourceVersion": str(version)}
    return {"apiVersion": "example.io/v1", "kind": "Widget", "metadata": {**named, **metadata}}


class Witness:
    def __init__(self) -> None:
        self.seen: list[str] = []

    def before(self, write: Write) -> None:
        self.seen.append(f"before {write}")

    def after(self, write: Write, error: KubeError | None) -> None:
        self.seen.append(f"after {write}: {type(error).__name__ if error else 'done'}")


def kubeconfig_for(path: Path, url: str, user: Object) -> Path:
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "c",
                "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
                "clusters": [{"name": "c", "cluster": {"server": url}}],
                "users": [{"name": "u", "user": user}],
            }
        )
    )
    return path


@asynccontextmanager
async def connected(
    server: Server,
    tmp_path: Path,
    *,
    timeout: float = 5.0,
    witness: Witness | None = None,
    counts: RequestObserver | None = None,
    user: Object | None = None,
) -> AsyncIterator[Cluster]:
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    kubeconfig = kubeconfig_for(tmp_path / "kubeconfig", f"http://127.0.0.1:{port}", user or {"token": "secret"})
    options = ClusterOptions(request_timeout=timeout, trust_environment_proxy=False)
    try:
        async with await Cluster.connect(
            kubeconfig=kubeconfig, options=options, writes=witness, requests=counts
        ) as cluster:
            yield cluster
    finally:
        await runner.cleanup()


@pytest.mark.parametrize(
    ("status", "reason", "error"),
    [
        (400, "BadRequest", errors.Invalid),
        (403, "Forbidden", errors.Forbidden),
        (404, "NotFound", errors.NotFound),
        (409, "Conflict", errors.Conflict),
        (409, "AlreadyExists", errors.AlreadyExists),
        (410, "Expired", errors.Expired),
        (413, "RequestEntityTooLarge", errors.Invalid),
        (422, "Invalid", errors.Invalid),
        (429, "TooManyRequests", errors.Unavailable),
        (500, "InternalError", errors.Unavailable),
        (503, "ServiceUnavailable", errors.Unavailable),
    ],
)
async def test_each_refusal_is_an_error_of_its_own_with_the_servers_sentence(
    status: int, reason: str, error: type[KubeError], tmp_path: Path
) -> None:
    server = Server(refused(status, reason, "the server's sentence"))
    async with connected(server, tmp_path) as cluster:
        with pytest.raises(error) as caught:
            await cluster.get(WIDGET, "n", "a")
    assert type(caught.value) is error
    assert str(caught.value) == "get widgets.example.io n/a: the server's sentence"
    assert (caught.value.status, caught.value.reason) == (status, reason)


async def test_an_invalid_object_names_its_fields(tmp_path: Path) -> None:
    cause = {"reason": "FieldValueInvalid", "message": "must be positive", "field": "spec.size"}
    async with connected(Server(refused(422, "Invalid", "no", causes=[cause])), tmp_path) as cluster:
        with pytest.raises(errors.Invalid) as caught:
            await cluster.create(WIDGET, widget())
    assert caught.value.causes == (errors.Cause("FieldValueInvalid", "must be positive", "spec.size"),)


async def test_a_page_of_a_proxy_is_an_error_with_its_first_words(tmp_path: Path) -> None:
    server = Server(web.Response(status=502, text="<h1>Bad Gateway</h1>"))
    async with connected(server, tmp_path) as cluster:
        with pytest.raises(errors.Unavailable, match="Bad Gateway"):
            await cluster.get(WIDGET, "n", "a")


async def test_an_overloaded_server_says_when_to_come_back(tmp_path: Path) -> None:
    overloaded = refused(429, "TooManyRequests", "slow down")
    overloaded.headers["Retry-After"] = "7"
    async with connected(Server(overloaded), tmp_path) as cluster:
        with pytest.raises(errors.Unavailable) as caught:
            await cluster.get(WIDGET, "n", "a")
    assert caught.value.retry_after_seconds == 7


async def test_a_server_that_accepts_and_stays_silent_is_unavailable_and_the_outcome_unknown(tmp_path: Path) -> None:
    async def silence(_request: web.Request) -> web.StreamResponse:
        await asyncio.sleep(60)
        raise AssertionError

    async with connected(Server(silence), tmp_path, timeout=0.2) as cluster:
        with pytest.raises(errors.Unavailable, match=r"no answer within 0\.2 s") as caught:
            await cluster.create(WIDGET, widget())
        assert caught.value.outcome_unknown
        with pytest.raises(errors.Unavailable) as caught:
            await cluster.get(WIDGET, "n", "a")
        assert not caught.value.outcome_unknown


async def test_a_closed_port_is_unavailable_and_nothing_was_written(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        kubeconfig = kubeconfig_for(tmp_path / "kubeconfig", url, {"token": "t"})
        async with await Cluster.connect(kubeconfig=kubeconfig) as cluster:
            with pytest.raises(errors.Unavailable) as caught:
                await cluster.create(WIDGET, widget())
    assert not caught.value.outcome_unknown


async def test_a_connection_cut_in_the_answer_to_a_write_leaves_its_outcome_unknown(tmp_path: Path) -> None:
    async def cut(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async with connected(Server(cut), tmp_path) as cluster:
        with pytest.raises(errors.Unavailable) as caught:
            await cluster.create(WIDGET, widget())
    assert caught.value.outcome_unknown


@pytest.mark.parametrize("text", ["not json", "[]"])
async def test_an_answer_that_is_no_object_is_unavailable(text: str, tmp_path: Path) -> None:
    async with connected(Server(web.Response(status=200, text=text)), tmp_path) as cluster:
        with pytest.raises(errors.Unavailable):
            await cluster.get(WIDGET, "n", "a")


async def test_writes_carry_their_content_type_manager_and_strictness(tmp_path: Path) -> None:
    server = Server(said(200, widget()))
    async with connected(server, tmp_path) as cluster:
        await cluster.create(WIDGET, {"metadata": {"namespace": "n", "name": "a"}})
        await cluster.merge_patch(WIDGET, "n", "a", {"status": {}}, subresource="status", resource_version=7)
        await cluster.json_patch(WIDGET, "n", "a", [{"op": "test", "path": "/x", "value": 1}])
        await cluster.apply(WIDGET, widget(), force=True)
        await cluster.replace(WIDGET, widget(), subresource="status")
        await cluster.delete(WIDGET, "n", "a", uid="u1", resource_version=7)
    assert [
        (request.method, request.path, request.headers["Content-Type"].split(";")[0]) for request in server.requests
    ] == [
        ("POST", "/apis/example.io/v1/namespaces/n/widgets", "application/json"),
        ("PATCH", "/apis/example.io/v1/namespaces/n/widgets/a/status", "application/merge-patch+json"),
        ("PATCH", "/apis/example.io/v1/namespaces/n/widgets/a", "application/json-patch+json"),
        ("PATCH", "/apis/example.io/v1/namespaces/n/widgets/a", "application/apply-patch+yaml"),
        ("PUT", "/apis/example.io/v1/namespaces/n/widgets/a/status", "application/json"),
        ("DELETE", "/apis/example.io/v1/namespaces/n/widgets/a", "application/json"),
    ]
    assert all(request.headers["Authorization"] == "Bearer secret" for request in server.requests)
    for request in server.requests[:-1]:
        assert (request.query["fieldManager"], request.query["fieldValidation"]) == ("sysvm-operator", "Strict")
    assert server.requests[3].query["force"] == "true"
    created, merged, _, _, _, deleted = server.bodies
    assert (created["apiVersion"], created["kind"]) == ("example.io/v1", "Widget")
    assert merged == {"status": {}, "metadata": {"resourceVersion": "7"}}
    assert deleted["preconditions"] == {"uid": "u1", "resourceVersion": "7"}


async def test_lists_go_on_page_after_page_and_their_items_know_their_kind(tmp_path: Path) -> None:
    first = {"metadata": {"resourceVersion": "9", "continue": "token=&"}, "items": [{"metadata": {"name": "a"}}]}
    last = {"metadata": {"resourceVersion": "9"}, "items": [{"metadata": {"name": "b"}}]}
    server = Server(said(200, first), said(200, last))
    async with connected(server, tmp_path) as cluster:
        found = await cluster.list(NODE, label_selector="a=b,c!=d", field_selector="metadata.name=x")
    assert ([item["metadata"]["name"] for item in found.items], found.resource_version) == (["a", "b"], 9)
    assert {(item["apiVersion"], item["kind"]) for item in found.items} == {("v1", "Node")}
    assert server.requests[0].path == "/api/v1/nodes"
    assert server.requests[1].query["continue"] == "token=&"
    assert server.requests[1].query["labelSelector"] == "a=b,c!=d"


async def test_a_list_that_expires_on_the_way_is_begun_again(tmp_path: Path) -> None:
    first = {"metadata": {"resourceVersion": "9", "continue": "t"}, "items": [{"metadata": {"name": "a"}}]}
    whole = {"metadata": {"resourceVersion": "12"}, "items": [{"metadata": {"name": "b"}}]}
    server = Server(said(200, first), refused(410, "Expired", "too old"), said(200, whole))
    async with connected(server, tmp_path) as cluster:
        found = await cluster.list(NODE)
    assert ([item["metadata"]["name"] for item in found.items], found.resource_version) == (["b"], 12)


async def test_names_cannot_leave_their_place_in_the_path(tmp_path: Path) -> None:
    server = Server(said(200, widget()))
    async with connected(server, tmp_path) as cluster:
        await cluster.get(WIDGET, "n", "../secrets/x?y")
        with pytest.raises(ValueError, match="namespace is needed"):
            await cluster.get(WIDGET, "", "a")
    assert server.requests[0].raw_path == "/apis/example.io/v1/namespaces/n/widgets/..%2Fsecrets%2Fx%3Fy"


async def test_every_write_is_seen_before_and_after_and_a_refused_one_too(tmp_path: Path) -> None:
    witness = Witness()
    server = Server(said(201, widget()), refused(409, "Conflict", "no"), said(200, widget()))
    async with connected(server, tmp_path, witness=witness) as cluster:
        await cluster.create(WIDGET, widget())
        with pytest.raises(errors.Conflict):
            await cluster.merge_patch(WIDGET, "n", "a", {}, subresource="status")
        await cluster.get(WIDGET, "n", "a")
    assert witness.seen == [
        "before create widgets.example.io n/a",
        "after create widgets.example.io n/a: done",
        "before patch widgets.example.io/status n/a",
        "after patch widgets.example.io/status n/a: Conflict",
    ]


async def test_a_witness_that_raises_before_a_write_prevents_it(tmp_path: Path) -> None:
    class Killer(Witness):
        def before(self, write: Write) -> None:
            raise SystemExit

    server = Server(said(201, widget()))
    async with connected(server, tmp_path, witness=Killer()) as cluster:
        with pytest.raises(SystemExit):
            await cluster.create(WIDGET, widget())
    assert server.requests == []


async def test_a_witness_that_raises_after_a_write_leaves_the_caches_as_they_were(tmp_path: Path) -> None:
    class Killer(Witness):
        def after(self, write: Write, error: KubeError | None) -> None:
            raise SystemExit

    store: Store[Object] = Store(WIDGET, lambda obj: obj)
    server = Server(said(201, widget()))
    async with connected(server, tmp_path, witness=Killer()) as cluster:
        cluster.attach(store)
        with pytest.raises(SystemExit):
            await cluster.create(WIDGET, widget())
    assert len(server.requests) == 1
    assert len(store) == 0


async def test_answers_go_into_the_attached_cache_at_once(tmp_path: Path) -> None:
    store: Store[int] = Store(WIDGET, lambda obj: int(obj["metadata"]["resourceVersion"]))
    gone = {"kind": "Status", "status": "Success", "details": {"uid": "u1"}}
    held = widget(9, deletionTimestamp="2026-11-22T10:00:00Z", finalizers=["x/y"])
    server = Server(said(200, widget(5)), said(200, widget(7)), said(200, held), said(200, gone))
    async with connected(server, tmp_path) as cluster:
        cluster.attach(store)
        await cluster.get(WIDGET, "n", "a")
        assert store.get(Key("n", "a")) == 5
        await cluster.merge_patch(WIDGET, "n", "a", {}, subresource="status")
        assert store.get(Key("n", "a")) == 7
        assert await cluster.delete(WIDGET, "n", "a") == held
        assert store.get(Key("n", "a")) == 9
        assert await cluster.delete(WIDGET, "n", "a") is None
        assert store.get(Key("n", "a")) is None


async def test_a_rotated_token_is_read_again_when_the_server_says_no(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("old\n")

    async def only_new(request: web.Request) -> web.StreamResponse:
        if request.headers["Authorization"] == "Bearer new":
            return web.json_response(widget())
        return web.json_response({"kind": "Status", "message": "Unauthorized", "reason": "Unauthorized"}, status=401)

    server = Server(only_new)
    async with connected(server, tmp_path, user={"tokenFile": str(token)}) as cluster:
        with pytest.raises(errors.Unauthorized):
            await cluster.get(WIDGET, "n", "a")
        assert len(server.requests) == 1, "the same token is not tried twice"
        token.write_text("new\n")
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(cluster.get(WIDGET, "n", "a"))
        await cluster.get(WIDGET, "n", "a")


async def test_a_kubeconfig_that_is_not_there_or_broken_is_said_at_once(tmp_path: Path) -> None:
    with pytest.raises(errors.LoginFailed, match="nowhere"):
        await Cluster.connect(kubeconfig=tmp_path / "nowhere")
    broken = tmp_path / "broken"
    broken.write_text("{]")
    with pytest.raises(errors.LoginFailed, match="broken"):
        await Cluster.connect(kubeconfig=broken)


async def test_a_token_is_read_again_every_minute_and_kept_while_its_file_is_away(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first")
    seconds = [0.0]
    kubeconfig = kubeconfig_for(tmp_path / "kubeconfig", "http://127.0.0.1:1", {"tokenFile": str(token)})
    login = Login(kubeconfig=kubeconfig, monotonic=lambda: seconds[0])
    await login.open()
    token.write_text("second")
    for at, expected in ((59.0, "first"), (61.0, "second")):
        seconds[0] = at
        await login.refresh()
        assert login.token == f"Bearer {expected}"
    token.unlink()
    seconds[0] = 130.0
    await login.refresh()
    assert login.token == "Bearer second"


async def test_in_a_pod_the_service_account_is_who_we_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token, authority = tmp_path / "token", tmp_path / "ca.crt"
    token.write_text("first\n")
    authority.write_text("a certificate")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(authority))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    login = Login(kubeconfig=None)
    configuration = await login.open()
    assert (configuration.host, configuration.ssl_ca_cert) == ("https://[fd00::1]:443", str(authority))
    assert login.token == "bearer first"
    token.write_text("second\n")
    assert await login.replace("bearer first")
    assert login.token == "bearer second"
    assert not await login.replace("bearer second")


async def test_every_answer_is_counted_and_also_when_there_is_none(tmp_path: Path) -> None:
    counted: list[tuple[str, str, int]] = []

    class Counts:
        def answered(self, verb: str, resource: Resource, status: int, seconds: float) -> None:
            assert 0 <= seconds < 5
            counted.append((verb, str(resource), status))

    async def cut(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    server = Server(said(200, widget()), refused(409, "Conflict", "no"), cut)
    async with connected(server, tmp_path, counts=Counts()) as cluster:
        await cluster.get(WIDGET, "n", "a")
        with pytest.raises(errors.Conflict):
            await cluster.apply(WIDGET, widget())
        with pytest.raises(errors.Unavailable):
            await cluster.create(WIDGET, widget())
    assert counted == [
        ("get", "widgets.example.io", 200),
        ("patch", "widgets.example.io", 409),
        ("create", "widgets.example.io", 0),
    ]


async def test_outside_a_pod_there_is_no_service_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(errors.LoginFailed, match="service account"):
        await Cluster.connect()
