"""configure.py is run for one data bag: killed anywhere in it, or running wild, it costs the router no bag.

The stand-in writes a bag as CloudStack's does: it takes what it cannot read for empty, and truncates in place.
"""

from __future__ import annotations

import json

import pytest
from tests.remote.configure import BAG, BAGS, GENERATED, lay_out
from tests.remote.judging import MODES, Judge, count_changes, killed_at
from tests.remote.vm import VM, make_order, with_file, write

from sysvm.patching.remote import databags


def order(**more: object) -> dict:
    return make_order(databags=[{**BAG, **more}])


def bag(vm: VM, name: str) -> bytes:
    return (vm.root / f"etc/cloudstack/{name}.json").read_bytes()


def note(vm: VM, words: str) -> list[str]:
    return [text for text in vm.report("op-1")["notes"] if words in text]


@pytest.fixture
def router(vm: VM) -> VM:
    lay_out(vm.root)
    return vm


def test_the_bag_concerned_is_applied_behind_the_fence_and_told(router):
    router.prepare(order())
    report = router.run("op-1")
    assert report["phase"] == "Committed", report["message"]
    assert [service["action"] for service in report["services"] if service["unit"].startswith("configure")] == ["rerun"]
    assert json.loads(bag(router, "loadbalancer"))["applied"] == "import new"
    assert (router.root / GENERATED).read_bytes() == b"made by: import new\n"
    ran = json.loads((router.root / ".systemd/configure.json").read_text())
    assert ran == {"argument": "load_balancer.json", "held": True, "times": 1}


def test_copies_of_bags_hold_secrets_and_go_with_the_commit(router):
    router.prepare(order())
    router.run("op-1")
    copies = [path for path in router.root.rglob("*") if path.is_file() and b"secret-of-a-tenant" in path.read_bytes()]
    assert copies == [router.root / "etc/cloudstack/vmpassword.json"]


def test_without_an_order_for_bags_nothing_of_configure_is_run(router):
    router.prepare(make_order())
    assert router.run("op-1")["phase"] == "Committed"
    assert not (router.root / ".systemd/configure.json").exists()


def test_a_router_without_the_bag_has_nothing_to_apply(router):
    router.prepare(order(bag="remoteaccessvpn", name="remote_access_vpn.json"))
    assert router.run("op-1")["phase"] == "Committed"
    assert note(router, "no such bag")
    assert not (router.root / ".systemd/configure.json").exists()


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("vmpassword", b'{"id": "vmpa', "vmpassword.json"),
        ("ips", b"[]", "no JSON object"),
        ("cmdline", None, "absent"),
        ("loadbalancer", b"{" + b" " * databags.MAX_BAG_BYTES + b"}", "too many"),
    ],
)
def test_a_bag_that_would_load_as_empty_refuses_before_anything_is_changed(router, name, content, said):
    path = router.root / f"etc/cloudstack/{name}.json"
    if content is None:
        path.unlink()
    else:
        write(path, content)
    old = router.state()
    router.prepare(order())
    report = router.run("op-1")
    assert (report["phase"], report["reason"]) == ("Abandoned", "DatabagFailed")
    assert said in report["message"]
    assert "nothing was changed" in report["message"]
    router.recover()
    assert router.state() == old


@pytest.mark.parametrize(
    ("script", "said"),
    [
        (b"wild: lose a key", "vmpassword.json has lost /10.1.1.5"),
        (b"wild: lose an entry", "ips.json has lost /eth2"),
        (b"wild: half a bag", "loadbalancer.json cannot be read"),
        (b"wild: remove a bag", "vmpassword.json cannot be read"),
        (b"wild: exception", "ended with 1"),
        (b"wild: never ends", "did not end in time"),
    ],
)
def test_a_run_that_costs_a_bag_anything_goes_back_with_every_bag_as_it_was(router, script, said):
    old, services = router.state(), router.systemd()
    wild = order()
    tree = wild["trees"][0]
    tree["files"] = [one for one in tree["files"] if one["path"] != "bin/configure.py"]
    changed = with_file(make_order(), "/x", script)["files"][-1]
    tree["files"].append({**changed, "path": "bin/configure.py"})
    router.prepare(wild)
    report = router.run("op-1")
    assert (report["phase"], report["reason"]) == ("RolledBack", "DatabagFailed"), report["message"]
    assert said in report["message"]
    assert report["message"].endswith("stays until CloudStack pushes again")
    router.recover()
    now = router.state()
    assert [path for path in now.keys() | old.keys() if now.get(path) != old.get(path)] == []
    assert router.systemd() == services


def test_a_failure_after_the_run_puts_the_bags_and_what_was_made_of_them_back(router):
    old, services = router.state(), router.systemd()
    failing = order()
    failing["services"][0]["serving"] = []
    router.prepare({**failing, "settle_seconds": 0.2})
    write(router.root / ".systemd/break-after-configure", b"haproxy")
    report = router.run("op-1")
    assert (report["phase"], report["reason"]) == ("RolledBack", "ServiceFailed"), report["message"]
    router.recover()
    now = router.state()
    assert [path for path in now.keys() | old.keys() if now.get(path) != old.get(path)] == []
    assert router.systemd() == services


def test_what_the_management_server_pushed_after_the_run_is_not_taken_back(router):
    """The push of another program between the run and a failure of a service."""
    pushed = {**BAGS["vmpassword"], "10.1.1.6": "pushed meanwhile"}
    router.prepare({**order(), "settle_seconds": 0.2})
    write(router.root / ".systemd/break-after-configure", b"haproxy")
    write(router.root / ".systemd/push-after-configure", json.dumps(pushed).encode())
    report = router.run("op-1")
    assert report["phase"] == "RolledBack", report["message"]
    assert json.loads(bag(router, "vmpassword")) == pushed
    assert json.loads(bag(router, "loadbalancer")) == BAGS["loadbalancer"]
    assert note(router, "written by somebody else since, and left as it is: /etc/cloudstack/vmpassword.json")


@pytest.mark.parametrize("pushed", [True, False])
def test_after_a_kill_in_the_run_a_push_that_came_since_is_kept_and_nothing_else_is(router, pushed):
    router.prepare(order())
    router.keep()
    names = count_changes(router, lambda: router.run("op-1"))
    router.reset()
    assert killed_at(lambda: router.run("op-1"), "kill-after", names.index("bag") + 2) == 137
    assert json.loads(bag(router, "cmdline"))["applied"] == "import new"
    if pushed:
        more = {**BAGS["vmpassword"], "10.1.1.6": "pushed meanwhile"}
        write(router.root / "etc/cloudstack/vmpassword.json", json.dumps(more).encode(), age=0)
        write(router.root / "var/cache/cloud/processed/vm_password.json.7.gz", b"", age=-1)
    router.recover()
    assert router.report("op-1")["phase"] == "RolledBack"
    assert ("10.1.1.6" in json.loads(bag(router, "vmpassword"))) is pushed
    assert json.loads(bag(router, "loadbalancer")) == BAGS["loadbalancer"]
    assert ("applied" in json.loads(bag(router, "cmdline"))) is pushed


def test_taking_a_committed_patch_back_days_later_leaves_the_bags_alone(router):
    from sysvm.patching.remote import worker

    router.prepare(order())
    router.run("op-1")
    applied = bag(router, "loadbalancer")
    assert worker.back(router.host(), router.store(), "op-1") == 0
    assert router.report("op-1")["phase"] == "RolledBack"
    assert bag(router, "loadbalancer") == applied


@pytest.mark.parametrize("wild", [False, True])
def test_killed_at_any_change_with_a_bag_the_vm_is_old_or_new_and_no_bag_is_lost(router, wild):
    judge = Judge(router)
    wanted = order()
    if wild:
        wanted["services"][2] = {**wanted["services"][2], "unit": "dnsmasq"}
        write(router.root / ".systemd/break-after-configure", b"haproxy")
        wanted["settle_seconds"] = 0.05
    router.prepare(wanted)
    router.keep()
    names = count_changes(router, lambda: router.run("op-1"))
    if not wild:
        judge.learn_new()
    assert "bag" in names
    first = names.index("bag") - 12
    verdicts = []
    for number in range(first, len(names) + 1):
        for mode in MODES:
            router.reset()
            where = f"{mode} {number} {names[number - 1]}"
            assert killed_at(lambda: router.run("op-1"), mode, number) == 137, where
            verdicts.append(judge.settle_and_judge(where, at_boot=number % 2 == 0))
    print(f"\n{len(verdicts)} points, {verdicts.count('old')} old, {verdicts.count('new')} new")
    assert set(verdicts) == ({"old"} if wild else {"old", "new"})


def test_a_recovery_of_bags_may_be_killed_and_repeated(router):
    judge = Judge(router)
    router.prepare(order())
    router.keep()
    names = count_changes(router, lambda: router.run("op-1"))
    judge.learn_new()
    middle = [number for number, name in enumerate(names, 1) if name == "bag"]
    for first in middle:
        router.reset()
        assert killed_at(lambda: router.run("op-1"), "kill-after", first) == 137
        router.base.joinpath("template").rename(router.base / "first")
        router.keep()
        again = count_changes(router, router.recover)
        for second in range(1, len(again) + 1):
            router.reset()
            where = f"{first}, then {second} {again[second - 1]}"
            assert killed_at(router.recover, MODES[second % 2], second) == 137, where
            assert judge.settle_and_judge(where, at_boot=True) == "old", where
        import shutil

        shutil.rmtree(router.base / "template")
        router.base.joinpath("first").rename(router.base / "template")


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({"a": 1}, {"a": 2, "b": 3}, []),
        ({"a": {"b": [1, 2]}}, {"a": {"b": [1]}}, ["/a/b"]),
        ({"a": {"b": 1}}, {"a": []}, ["/a"]),
        ({"a": 1}, {"id": "x"}, ["/a"]),
    ],
)
def test_less_is_a_key_or_an_entry_less_at_any_depth(before, after, said):
    assert databags.lost(before, after) == said
