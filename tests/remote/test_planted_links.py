"""What somebody without root on the VM can plant: links on the way to a file, and files in the place of others.

The program is root there. It writes where a path leads through folders and links of root, and nowhere else.
"""

import os
import stat

import pytest
from tests.remote.vm import NEW_FILES, entry, make_order, sha256, write

from sysvm.patching.remote import files
from sysvm.patching.remote.failures import Failure

STRANGER = 65534
root_only = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make links that belong to somebody else")


@pytest.fixture
def elsewhere(vm):
    """A folder that the order does not name, with a file that nobody may touch."""
    folder = vm.root / "srv/private"
    write(folder / "haproxy.cfg", b"private\n", 0o4755)
    return folder


def plant(link, target, owner=STRANGER):
    """The folder `link` becomes a link to `target`; what was in it waits beside it."""
    if link.exists():
        link.rename(str(link) + ".aside")
    os.symlink(target, link)
    os.chown(link, owner, owner, follow_symlinks=False)


def untouched(folder):
    return sorted(os.listdir(folder)) == ["haproxy.cfg"] and (folder / "haproxy.cfg").read_bytes() == b"private\n"


@root_only
def test_a_strangers_link_on_the_way_is_refused_before_anything_is_changed(vm, elsewhere):
    plant(vm.root / "etc/haproxy", "/srv/private")
    before = vm.state()
    with pytest.raises((Failure, OSError), match="link"):
        vm.prepare(make_order())
    assert untouched(elsewhere)
    assert (vm.root / "etc/haproxy").is_symlink()
    changed = {path for path, row in vm.state().items() if before.get(path) != row and ".sysvm-" not in path}
    assert changed <= {"(names of one file)", "var/lib/sysvm"}


@root_only
@pytest.mark.parametrize("target", ["/srv/private", "relative"])
def test_a_folder_that_becomes_a_strangers_link_after_the_build_takes_no_file(vm, elsewhere, target):
    """Caught by the last look if the files differ; here they do not, and the kernel is asked to follow nothing."""
    old = vm.texts()
    vm.prepare(make_order())
    folder = vm.root / "etc/haproxy"
    inside = folder / "haproxy.cfg"
    facts = inside.stat()
    twin = elsewhere / "haproxy.cfg"
    twin.write_bytes(inside.read_bytes())
    twin.chmod(stat.S_IMODE(facts.st_mode))
    os.utime(twin, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    plant(folder, str(elsewhere) if target == "/srv/private" else os.path.relpath(elsewhere, folder.parent))
    report = vm.run("op-1")
    assert report["phase"] != "Committed", report
    assert sorted(os.listdir(elsewhere)) == ["haproxy.cfg"]
    assert twin.read_bytes() == inside.read_bytes() == b"good old\n"
    # All the rest is as it was; only what the stranger did is left to be undone.
    folder.unlink()
    os.rename(str(folder) + ".aside", folder)
    twin.unlink()
    now = vm.texts()
    assert {path: row for path, row in now.items() if path in NEW_FILES} == {
        path: row for path, row in old.items() if path in NEW_FILES
    }


def test_a_file_that_becomes_a_link_after_the_build_is_somebody_elses_doing(vm, elsewhere):
    vm.prepare(make_order())
    place = vm.root / "etc/haproxy/haproxy.cfg"
    place.unlink()
    place.symlink_to("/srv/private/haproxy.cfg")
    report = vm.run("op-1")
    assert (report["phase"], report["reason"]) == ("Abandoned", "OtherActor")
    assert untouched(elsewhere)
    assert os.readlink(place) == "/srv/private/haproxy.cfg"


def test_a_link_in_the_place_of_a_file_is_replaced_and_not_written_through(vm, elsewhere):
    place = vm.root / "etc/haproxy/haproxy.cfg"
    place.unlink()
    place.symlink_to("/srv/private/haproxy.cfg")
    vm.prepare(make_order())
    assert vm.run("op-1")["phase"] == "Committed"
    assert not place.is_symlink()
    assert place.read_bytes() == b"good new\n"
    assert untouched(elsewhere)


def test_links_of_root_are_followed_as_ever(vm):
    (vm.root / "etc/haproxy").rename(vm.root / "srv-haproxy")
    (vm.root / "etc/haproxy").symlink_to("../srv-haproxy")
    vm.prepare(make_order())
    assert vm.run("op-1")["phase"] == "Committed"
    assert (vm.root / "srv-haproxy/haproxy.cfg").read_bytes() == b"good new\n"


def test_an_order_cannot_give_what_only_a_file_may_keep(vm):
    """set-user-id and its like: not from an order, whatever it says."""
    for mode in (0o4755, 0o2755, 0o1755):
        bad = {**make_order(), "files": [entry("/etc/cron.daily/clear_cache", b"#!/bin/sh\nnew\n", mode)]}
        with pytest.raises(Failure, match="mode"):
            vm.prepare(bad)


def test_a_file_keeps_its_set_user_id_and_no_other_gets_it(vm):
    old = vm.root / "etc/cron.daily/clear_cache"
    old.chmod(0o4755)
    vm.prepare(make_order())
    assert vm.run("op-1")["phase"] == "Committed"
    odd = [path for path, row in vm.texts().items() if row[0] == stat.S_IFREG and row[1] & 0o7000]
    assert odd == ["etc/cron.daily/clear_cache"]
    assert sha256(old.read_bytes()) == sha256(b"#!/bin/sh\nnew\n")


# ------------------------------------------------------------------------------------------ the single changes


CHANGES = {
    "write": lambda folder: files.write_new(folder + "new", [b"x"], 0o644),
    "unlink": lambda folder: files.unlink(folder + "haproxy.cfg"),
    "rename": lambda folder: files.rename(folder + "haproxy.cfg", folder + "new"),
    "link": lambda folder: files.link(folder + "haproxy.cfg", folder + "new"),
    "symlink": lambda folder: files.symlink("x", folder + "new"),
    "mkdir": lambda folder: files.mkdir(folder + "new", 0o755),
    "owner": lambda folder: files.set_owner(folder + "haproxy.cfg", 1, 1),
    "times": lambda folder: files.set_times(folder + "haproxy.cfg", 0, 0),
    "tree": lambda folder: files.remove_tree(folder + "haproxy.cfg"),
    "exchange": lambda folder: files.exchange(folder + "haproxy.cfg", folder + "haproxy.cfg"),
    "read": lambda folder: files.read_bytes(folder + "haproxy.cfg"),
}


@root_only
@pytest.mark.parametrize("change", CHANGES)
def test_no_change_goes_through_a_strangers_link(vm, elsewhere, change):
    plant(vm.root / "etc/haproxy", str(elsewhere))
    before = (elsewhere / "haproxy.cfg").stat()
    with pytest.raises(OSError, match="link"):
        CHANGES[change](str(vm.root / "etc/haproxy") + "/")
    after = (elsewhere / "haproxy.cfg").stat()
    assert untouched(elsewhere)
    same = ("st_mode", "st_uid", "st_nlink", "st_mtime_ns")
    assert [getattr(before, name) for name in same] == [getattr(after, name) for name in same]


def test_a_pipe_in_the_place_of_a_file_keeps_nobody_waiting(vm):
    place = vm.root / "etc/haproxy/pipe"
    os.mkfifo(place)
    with pytest.raises(OSError, match="no plain file"):
        files.read_bytes(str(place))
