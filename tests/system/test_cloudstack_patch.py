"""CloudStack's own live patch, as the lab re-creates it, makes CloudStack's mistakes: each by its number.

These are not promises of ours. They hold the yardstick in place: what is measured beside our patch must go on failing
in the ways in which the real script fails, or the comparison means nothing.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator

import pytest

from lab import Lab, SystemVMType, VMSpec, preflight
from lab.content import cloudstack_patch, layout, payloads, releases
from lab.content.cloudstack_patch import CACHE, Outcome
from lab.content.releases import Release

pytestmark = [
    pytest.mark.systemvm,
    pytest.mark.skipif(preflight.missing() is not None, reason=preflight.missing() or ""),
]

ROUTER, BASIC, STORAGE, CONSOLE = "r-61-VM", "r-62-VM", "s-63-VM", "v-64-VM"
PATCHED = VMSpec(name="r-65-VM", type=SystemVMType.ROUTER, index=65, group="net-5")
SPECS = (
    VMSpec(name=ROUTER, type=SystemVMType.ROUTER, index=61, group="net-1"),
    VMSpec(name=BASIC, type=SystemVMType.DHCPSRVR, index=62, group="net-2"),
    VMSpec(name=STORAGE, type=SystemVMType.SECSTORAGE, index=63),
    VMSpec(name=CONSOLE, type=SystemVMType.CONSOLEPROXY, index=64),
)
AGENT = layout.AGENT_HOME
JKS = f"{AGENT}/conf/cloud.jks"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    made = Lab(tmp_path_factory.mktemp("lab"))
    try:
        made.up([], release="old")
        yield made
    finally:
        made.down()


@pytest.fixture
def router(running: Lab) -> Iterator[Lab]:
    yield from fresh(running, ROUTER)


@pytest.fixture
def basic(running: Lab) -> Iterator[Lab]:
    yield from fresh(running, BASIC)


@pytest.fixture
def storage(running: Lab) -> Iterator[Lab]:
    yield from fresh(running, STORAGE)


@pytest.fixture
def console(running: Lab) -> Iterator[Lab]:
    yield from fresh(running, CONSOLE)


def fresh(running: Lab, name: str) -> Iterator[Lab]:
    """The lab with the one VM that a test is about: every test leaves its VM in ruins."""
    running.add(*[spec for spec in SPECS if spec.name == name], release="old")
    yield running
    running.remove(name)


def patch(lab: Lab, name: str, release: Release) -> Outcome:
    return cloudstack_patch.patch(
        lab, name, scripts=payloads.build_scripts(release), agent=payloads.build_agent(release)
    )


def signature(lab: Lab, name: str) -> str:
    return lab.read_bytes(name, layout.SIGNATURE).decode().strip()


def there(lab: Lab, name: str, path: str) -> bool:
    return lab.exec(name, ["test", "-e", path], check=False).returncode == 0


def state(lab: Lab, name: str, unit: str) -> str:
    return lab.exec(name, ["systemctl", "is-active", unit], check=False).stdout.strip()


def started(lab: Lab, name: str, unit: str) -> str:
    return lab.exec(name, ["systemctl", "show", "-P", "MainPID", unit]).stdout.strip()


def eventually(happens: Callable[[], bool], *, seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if happens():
            return True
        time.sleep(0.1)
    return happens()


@pytest.fixture(scope="module")
def patched(running: Lab) -> Iterator[tuple[Lab, Outcome]]:
    """A router with dnsmasq stopped and a live load balancer, after a patch that succeeded by its own account."""
    name = PATCHED.name
    running.add(PATCHED, release="old")
    assert b"listen 198_18_" in running.read_bytes(name, "/etc/haproxy/haproxy.cfg")
    assert b"\nListenAddress 169.254." in running.read_bytes(name, "/etc/ssh/sshd_config")
    running.exec(name, "systemctl stop dnsmasq")
    yield running, patch(running, name, releases.new())
    running.remove(name)


def test_a_good_release_arrives_and_its_version_is_told(patched: tuple[Lab, Outcome]) -> None:
    lab, outcome = patched
    assert outcome.succeeded, outcome.output
    archive = payloads.build_scripts(releases.new())
    expected = hashlib.md5(archive, usedforsecurity=False).hexdigest()
    assert outcome.version == expected == signature(lab, PATCHED.name)
    assert lab.read_bytes(PATCHED.name, layout.INSTALLED_PAYLOAD) == archive
    assert b"ManagedFile" in lab.read_bytes(PATCHED.name, "/opt/cloud/bin/cs/CsFile.py")
    assert not there(lab, PATCHED.name, AGENT), "routers have it only while they are patched"


def test_b4_a_service_that_is_down_stays_down_and_that_is_a_success(patched: tuple[Lab, Outcome]) -> None:
    lab, outcome = patched
    assert outcome.succeeded
    assert state(lab, PATCHED.name, "dnsmasq") == "inactive"


def test_b7_live_configuration_is_overwritten_and_the_load_balancer_is_gone(patched: tuple[Lab, Outcome]) -> None:
    lab, _ = patched
    packaged = releases.new().scripts["etc/haproxy/haproxy.cfg"]
    assert lab.read_bytes(PATCHED.name, "/etc/haproxy/haproxy.cfg") == packaged
    assert not lab.exec(PATCHED.name, "ss -Hlnt 'sport = 80' | grep 198.18", check=False).stdout
    assert b"\nListenAddress 169.254." not in lab.read_bytes(PATCHED.name, "/etc/ssh/sshd_config")


def test_b12_files_that_the_new_payload_lacks_stay(patched: tuple[Lab, Outcome]) -> None:
    lab, _ = patched
    gone = "opt/cloud/bin/set_redundant.py"
    assert gone not in releases.new().scripts
    assert there(lab, PATCHED.name, f"/{gone}")


def test_b1_and_b2_going_back_restores_nothing_and_leaves_nothing_to_restore(router: Lab) -> None:
    before = signature(router, ROUTER)
    outcome = patch(router, ROUTER, releases.broken())
    assert outcome.code == 1
    assert outcome.version is None
    assert "Failed to start apache2 service" in outcome.log
    assert "cloud-scripts.tar: Cannot open" in outcome.log
    assert b"ManagedFile" in router.read_bytes(ROUTER, "/opt/cloud/bin/cs/CsFile.py"), "B1: the new scripts stay"
    broken = releases.broken().scripts[releases.SECURITY_CONF]
    assert router.read_bytes(ROUTER, f"/{releases.SECURITY_CONF}") == broken
    assert state(router, ROUTER, "apache2") != "active"
    assert signature(router, ROUTER) == before, "B1: and the signature says old"
    assert not there(router, ROUTER, f"{CACHE}/bkpup_live_patch"), "B2"
    installed = router.read_bytes(ROUTER, layout.INSTALLED_PAYLOAD)
    assert installed == payloads.build_scripts(releases.broken()), "B2: the next start installs it again"


def test_b1_the_rest_of_the_services_is_eaten_by_unzip(storage: Lab) -> None:
    outcome = patch(storage, STORAGE, releases.broken())
    assert outcome.code == 1
    assert "replace " in outcome.log, "unzip asks, and its answer is the list of services"
    assert "NULL" in outcome.log or "EOF or read error" in outcome.log, outcome.log[-2000:]


def test_b3_garbage_is_a_success_and_its_checksum_the_signature(router: Lab) -> None:
    garbage = b"this is no archive\n" * 100
    scripts = router.snapshot_tree(ROUTER, ["/opt/cloud/bin/cs/CsFile.py"])
    outcome = cloudstack_patch.patch(router, ROUTER, scripts=garbage, agent=payloads.build_agent(releases.new()))
    assert outcome.code == 0
    expected = hashlib.md5(garbage, usedforsecurity=False).hexdigest()
    assert outcome.version == expected == signature(router, ROUTER)
    assert router.snapshot_tree(ROUTER, ["/opt/cloud/bin/cs/CsFile.py"]) == scripts


def test_b3_a_missing_agent_is_a_success_and_empties_the_storage_vm(storage: Lab) -> None:
    """With a stopped agent: whether a running one is found dead is a race between its exec and `is-active` (B5)."""
    storage.exec(STORAGE, "systemctl stop cloud")
    outcome = cloudstack_patch.patch(storage, STORAGE, scripts=payloads.build_scripts(releases.new()), agent=None)
    assert outcome.code == 0, outcome.output
    assert outcome.version is not None
    assert not storage.exec(STORAGE, f"ls {AGENT}/*.jar", check=False).stdout


def test_b5_an_agent_that_dies_a_moment_after_its_start_is_a_success(storage: Lab) -> None:
    dying = releases.new().derive("dying", agent_change={"_run.sh": b"#!/bin/bash\nsleep 4\nexit 1\n"})
    assert patch(storage, STORAGE, dying).succeeded
    assert eventually(lambda: state(storage, STORAGE, "cloud") != "active")


def test_b6_on_a_basic_zones_router_nothing_is_restarted(basic: Lab) -> None:
    units = ("dnsmasq", "apache2")
    before = [started(basic, BASIC, unit) for unit in units]
    assert patch(basic, BASIC, releases.new()).succeeded
    assert [started(basic, BASIC, unit) for unit in units] == before
    assert "FileETag None" in basic.read_bytes(BASIC, f"/{releases.SECURITY_CONF}").decode(), "though it changed"


def test_b8_an_agent_without_a_keystore_loses_its_properties(storage: Lab) -> None:
    assert b"guid=s-63-VM-guid" in storage.read_bytes(STORAGE, f"{AGENT}/conf/agent.properties")
    storage.exec(STORAGE, ["rm", JKS])
    patch(storage, STORAGE, releases.new())
    assert (
        storage.read_bytes(STORAGE, f"{AGENT}/conf/agent.properties") == releases.new().agent["conf/agent.properties"]
    )


def test_with_a_keystore_the_agent_keeps_its_properties(storage: Lab) -> None:
    before = storage.read_bytes(STORAGE, f"{AGENT}/conf/agent.properties")
    assert patch(storage, STORAGE, releases.new()).succeeded
    assert storage.read_bytes(STORAGE, f"{AGENT}/conf/agent.properties") == before
    assert eventually(lambda: state(storage, STORAGE, "cloud") == "active")


def test_b9_each_patch_of_a_console_proxy_calls_what_is_not_there_and_adds_one_more_rule(console: Lab) -> None:
    def rules() -> int:
        return console.exec(CONSOLE, "iptables -S INPUT").stdout.count("-i eth2 -p tcp -m state --state NEW")

    before = rules()
    outcomes = [patch(console, CONSOLE, releases.new()) for _ in range(2)]
    assert all(outcome.succeeded for outcome in outcomes)
    assert all("log_it: command not found" in outcome.output for outcome in outcomes)
    assert rules() == before + 2


def test_b10_two_patches_at_once_share_one_folder_and_nobody_is_refused(router: Lab) -> None:
    """No lock: the second takes away what the first works with. Who breaks is chance; that both begin is not."""
    first, second = payloads.build_scripts(releases.new()), payloads.build_scripts(releases.mended())
    router.write_bytes(ROUTER, f"{CACHE}/cloud-scripts.tgz", first)
    for name in ("one.sh", "two.sh"):
        router.write_bytes(ROUTER, f"/root/{name}", cloudstack_patch.SCRIPT.read_bytes())
    router.write_bytes(ROUTER, "/root/second.tgz", second)
    # The second payload is copied over the first's while that is being unpacked, as a second management server does.
    router.exec(
        ROUTER,
        "cd /root; bash one.sh > one.out 2>&1 & sleep 0.3; cp /root/second.tgz /var/cache/cloud/cloud-scripts.tgz;"
        " bash two.sh > two.out 2>&1; echo $? > two.code; wait",
        timeout=240,
    )
    assert "lock" not in router.read_bytes(ROUTER, "/root/two.out").decode()
    told = router.read_bytes(ROUTER, "/root/one.out").decode() + router.read_bytes(ROUTER, "/root/two.out").decode()
    sums = {hashlib.md5(content, usedforsecurity=False).hexdigest() for content in (first, second)}
    in_place = hashlib.md5(router.read_bytes(ROUTER, layout.INSTALLED_PAYLOAD), usedforsecurity=False).hexdigest()
    claimed = {part.split()[0] for part in told.split("version:")[1:]}
    broken = "No such file" in router.read_bytes(ROUTER, cloudstack_patch.LOG).decode("utf-8", "replace")
    # Either one works on what the other took away, or one reports a version that is not the one in place.
    assert broken or claimed != {in_place} or signature(router, ROUTER) not in sums


def test_b11_nobody_asks_for_room_and_a_full_disk_is_a_success_with_half_the_files(running: Lab) -> None:
    small = VMSpec(name="r-66-VM", type=SystemVMType.ROUTER, index=66, group="net-6", tmpfs_mib=256)
    running.add(small, release="old")
    try:
        for file, content in (
            ("cloud-scripts.tgz", payloads.build_scripts(releases.new())),
            ("patch-sysvms.sh", cloudstack_patch.SCRIPT.read_bytes()),
        ):
            running.write_bytes(small.name, f"{CACHE}/{file}", content)
        running.exec(small.name, "dd if=/dev/zero of=/root/filler bs=64k 2>/dev/null", check=False, timeout=120)
        done = running.exec(small.name, ["bash", f"{CACHE}/patch-sysvms.sh"], check=False, timeout=180)
        log = running.exec(small.name, ["cat", cloudstack_patch.LOG], check=False).stdout
        assert "No space left" in done.stdout + done.stderr + log
        installed = running.exec(small.name, ["cat", "/opt/cloud/bin/cs/CsFile.py"], check=False).stdout.encode()
        installed_old = installed == releases.old().scripts["opt/cloud/bin/cs/CsFile.py"]
        claimed = done.returncode == 0 and "version:" in done.stdout
        assert claimed or not installed_old, "it neither refused nor left the VM as it was"
    finally:
        running.remove(small.name)


def test_b13_services_that_no_list_names_run_on_with_what_they_had(patched: tuple[Lab, Outcome]) -> None:
    """cron, ssh, rsyslog are in no list of enabled services: the patch says success, and they were not told."""
    lab, outcome = patched
    assert outcome.succeeded
    listed = lab.read_bytes(PATCHED.name, f"{CACHE}/enabled_svcs").decode().split()
    for unit in ("ssh", "cron", "rsyslog"):
        assert unit not in listed
        began = lab.exec(PATCHED.name, ["systemctl", "show", "-P", "ActiveEnterTimestampMonotonic", unit]).stdout
        boot = lab.exec(PATCHED.name, ["systemctl", "show", "-P", "UserspaceTimestampMonotonic"]).stdout
        assert int(began) - int(boot) < 60_000_000, f"{unit} has run since the boot"
    assert b"\nListenAddress 169.254." not in lab.read_bytes(PATCHED.name, "/etc/ssh/sshd_config"), "though it changed"


def test_b14_the_answer_does_not_name_the_service_that_failed(router: Lab) -> None:
    outcome = patch(router, ROUTER, releases.broken())
    assert outcome.code == 1
    assert "apache2" not in outcome.output
    assert "Failed to start apache2 service" in outcome.log, "only the log on the VM does"
