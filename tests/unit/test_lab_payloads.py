"""The lab's payloads have the shape of real ones, and its hostile ones are as hostile as they say."""

from __future__ import annotations

import ast
import gzip
import hashlib
import io
import itertools
import re
import stat
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from lab.content import hostile, manifests, payloads, releases
from lab.content.releases import Release

EARLY_CONFIG = "opt/cloud/bin/setup/cloud-early-config"

STARTS = """
import os, sys
for folder in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        sys.path.insert(0, folder)
        try:
            import configure, configure_router
        except ImportError:
            os._exit(1)
        os._exit(0)
    print("no" if os.waitpid(child, 0)[1] else "yes")
"""
"""For each folder of scripts: whether a program there gets past its imports. One interpreter, forked each time."""


def members_of(content: bytes) -> list[tarfile.TarInfo]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        return archive.getmembers()


def files_in(content: bytes) -> dict[str, tuple[bytes, int]]:
    """Path -> (content, mode), the last entry of a path wins."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        for info in archive:
            if info.isfile():
                source = archive.extractfile(info)
                assert source is not None
                found[info.name] = (source.read(), info.mode)
    return found


def zip_files(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}


@pytest.fixture(scope="module", params=["old", "new", "broken", "mended"])
def release(request: pytest.FixtureRequest) -> Release:
    return releases.named()[request.param]


class TestScripts:
    def test_it_has_the_entries_of_a_real_one(self) -> None:
        members = members_of(payloads.build_scripts(releases.old()))
        files = [m for m in members if m.isfile()]
        assert (len(files), len({m.name for m in files})) == (199, 188)
        assert len([m for m in members if m.isdir()]) == 33
        assert all(m.isfile() or m.isdir() for m in members)
        assert {m.name for m in files} == set(manifests.script_sizes())

    def test_the_logrotate_files_are_there_twice_and_the_plain_one_comes_last(self) -> None:
        modes: dict[str, list[int]] = {}
        for info in members_of(payloads.build_scripts(releases.old(), build_seed=3)):
            if info.isfile():
                modes.setdefault(info.name, []).append(info.mode)
        twice = {path for path, found in modes.items() if len(found) == 2}
        assert len(twice) == 11
        assert all(path.startswith("etc/logrotate.d/") and modes[path] == [0o755, 0o644] for path in twice)
        rest = {path for path, found in modes.items() if found != [0o755]} - twice
        assert rest == {"etc/logrotate.conf"}

    def test_it_is_about_as_large_as_a_real_one(self) -> None:
        content = payloads.build_scripts(releases.old())
        assert 100_000 < len(content) < 200_000
        assert 550_000 < sum(m.size for m in members_of(content)) < 750_000

    def test_every_release_has_188_paths(self, release: Release) -> None:
        assert len(files_in(payloads.build_scripts(release))) == 188

    def test_no_folder_comes_after_what_it_holds(self) -> None:
        for seed in (0, 5):
            seen: set[str] = set()
            for info in members_of(payloads.build_scripts(releases.new(), build_seed=seed)):
                parent = str(Path(info.name).parent)
                assert parent == "." or parent in seen, info.name
                if info.isdir():
                    seen.add(info.name)

    def test_equal_arguments_give_equal_bytes(self, release: Release) -> None:
        first = payloads.build_scripts(release, build_seed=1)
        assert first == payloads.build_scripts(release, build_seed=1)

    def test_another_build_differs_in_checksum_and_order_but_not_in_content(self, release: Release) -> None:
        one, other = (payloads.build_scripts(release, build_seed=seed) for seed in (0, 7))
        assert hashlib.md5(one).digest() != hashlib.md5(other).digest()
        assert [m.name for m in members_of(one)] != [m.name for m in members_of(other)]
        assert files_in(one) == files_in(other)


class TestAgent:
    def test_it_has_the_members_of_a_real_one(self) -> None:
        with zipfile.ZipFile(io.BytesIO(payloads.build_agent(releases.old()))) as archive:
            names = archive.namelist()
            assert archive.testzip() is None
        assert (len(names), len(set(names))) == (456, 456)
        assert len([name for name in names if name.endswith(".jar")]) == 222

    def test_it_is_small_by_default_and_grows_with_the_scale(self) -> None:
        small = payloads.build_agent(releases.old())
        assert 1_500_000 < len(small) < 2_500_000
        assert len(payloads.build_agent(releases.old(), scale=0.05)) > 2 * len(small)

    def test_another_build_has_the_same_content(self) -> None:
        one, other = (payloads.build_agent(releases.new(), build_seed=seed) for seed in (0, 4))
        assert one != other
        assert zip_files(one) == zip_files(other)
        assert one == payloads.build_agent(releases.new())

    def test_one_jar_differs_between_the_releases(self) -> None:
        before, after = zip_files(payloads.build_agent(releases.old())), zip_files(payloads.build_agent(releases.new()))
        assert {name for name in after if before.get(name) != after[name]} == {releases.AGENT_JAR}


class TestReleases:
    def changed(self, one: Release, other: Release) -> set[str]:
        return {path for path in one.scripts if path in other.scripts and one.scripts[path] != other.scripts[path]}

    def test_new_changes_modules_a_check_and_a_setting_adds_one_file_and_drops_one(self) -> None:
        old, new = releases.old(), releases.new()
        changed = self.changed(old, new)
        assert {"opt/cloud/bin/cs/CsFile.py", "root/health_checks/disk_space_check.py"} < changed
        assert releases.SECURITY_CONF in changed
        assert set(new.scripts) - set(old.scripts) == {"opt/cloud/bin/cs/CsFacts.py"}
        assert set(old.scripts) - set(new.scripts) == {"opt/cloud/bin/set_redundant.py"}

    def test_half_a_switch_of_the_modules_does_not_start(self, tmp_path: Path) -> None:
        """One old module among new ones, or the other way round, and configure.py cannot be imported."""
        old, new = releases.old(), releases.new()
        modules = [path for path in self.changed(old, new) if path.startswith("opt/cloud/bin/")]
        assert len(modules) >= 3

        trees = {"old": dict(old.scripts), "new": dict(new.scripts)}
        for path in modules:
            name = Path(path).name
            trees[f"old with new {name}"] = {**old.scripts, path: new.scripts[path]}
            trees[f"new with old {name}"] = {**new.scripts, path: old.scripts[path]}
        for name, tree in trees.items():
            for path, content in tree.items():
                if path.startswith("opt/cloud/bin/"):
                    (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
                    (tmp_path / name / path).write_bytes(content)
        command: list[str | Path] = ["python3", "-B", "-c", STARTS]
        command += [tmp_path / name / "opt/cloud/bin" for name in trees]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        starts = dict(zip(trees, done.stdout.split(), strict=True))
        assert {name for name, answer in starts.items() if answer == "yes"} == {"old", "new"}

    def test_broken_and_mended_differ_from_new_in_one_setting(self) -> None:
        new, broken, mended = releases.new(), releases.broken(), releases.mended()
        assert self.changed(new, broken) == self.changed(new, mended) == {releases.SECURITY_CONF}
        assert b"Listen 0.0.0.0:3922" in broken.scripts[releases.SECURITY_CONF]
        assert b"Listen" not in mended.scripts[releases.SECURITY_CONF]

    def test_all_have_checksums_of_their_own(self) -> None:
        sums = {payloads.checksum(r, payloads.build_scripts(r)) for r in releases.named().values()}
        assert len(sums) == 4

    @pytest.mark.parametrize(("version", "algorithm"), [("4.20.1", "md5"), ("4.21.9", "md5"), ("4.22.0", "sha512")])
    def test_the_algorithm_is_the_one_that_its_own_early_config_calls(self, version: str, algorithm: str) -> None:
        release = releases.base("some", version)
        assert release.signature_algorithm == algorithm
        text = release.scripts[EARLY_CONFIG].decode()
        assert re.findall(r"\b(md5|sha512)sum\b", text) == [algorithm]
        derived = releases.old().derive("other", version=version)
        assert derived.scripts[EARLY_CONFIG] == release.scripts[EARLY_CONFIG]
        content = payloads.build_scripts(release)
        assert payloads.checksum(release, content) == hashlib.new(algorithm, content).hexdigest()

    def test_an_edit_that_does_not_fit_is_refused(self) -> None:
        old = releases.old()
        with pytest.raises(ValueError, match="has no nothing"):
            old.derive("x", change={"nothing": b""})
        with pytest.raises(ValueError, match="has no nothing"):
            old.derive("x", remove=["nothing"])
        with pytest.raises(ValueError, match="already has"):
            old.derive("x", add={EARLY_CONFIG: b""})
        with pytest.raises(ValueError, match=r"has no other\.jar"):
            old.derive("x", agent_remove=["other.jar"])

    def test_edits_reach_the_archives(self) -> None:
        made = releases.old().derive(
            "x",
            change={"etc/ipsec.conf": b"# changed\n"},
            add={"opt/cloud/extra/new.sh": b"#!/bin/sh\n"},
            agent_remove=[releases.AGENT_JAR],
            agent_add={"cloud-agent-4.22.jar": b"newer"},
        )
        scripts, agent = files_in(payloads.build_scripts(made)), zip_files(payloads.build_agent(made))
        assert scripts["etc/ipsec.conf"] == (b"# changed\n", 0o755)
        assert scripts["opt/cloud/extra/new.sh"] == (b"#!/bin/sh\n", 0o755)
        assert releases.AGENT_JAR not in agent
        assert agent["cloud-agent-4.22.jar"] == b"newer"

    def test_a_release_is_found_by_name_and_version(self) -> None:
        assert releases.find("") is releases.find("old") is releases.find("4.20.1")
        with pytest.raises(LookupError, match=r"new \(4\.20\.2\)"):
            releases.find("4.99")


class TestContent:
    """No reader of a file of the payload stumbles over it."""

    def test_shell_scripts_parse(self, release: Release, tmp_path: Path) -> None:
        for path, content in release.scripts.items():
            if content.startswith(b"#!/bin/bash"):
                script = tmp_path / "script"
                script.write_bytes(content)
                done = subprocess.run(["bash", "-n", script], capture_output=True, text=True)
                assert done.returncode == 0, f"{path}: {done.stderr}"

    def test_python_files_parse_and_name_the_interpreter_of_the_template(self, release: Release) -> None:
        for path, content in release.scripts.items():
            if path.endswith(".py"):
                ast.parse(content, path)
                assert not content.startswith(b"#!") or content.startswith(b"#!/usr/bin/python\n"), path

    def test_units_have_nothing_but_sections_settings_and_comments(self, release: Release) -> None:
        line = re.compile(r"^(#.*|\[[A-Z][a-z]+\]|[A-Za-z]+=.*|)$")
        units = {p: c for p, c in release.scripts.items() if p.startswith("etc/systemd/system/")}
        assert len(units) == 11
        for path, content in units.items():
            assert all(line.match(each) for each in content.decode().splitlines()), path

    def test_the_settings_that_a_vm_edits_are_there_to_be_edited(self) -> None:
        text = releases.old().scripts["etc/ssh/sshd_config"].decode()
        assert "#ListenAddress 0.0.0.0\n" in text
        assert "PubkeyAcceptedAlgorithms" not in text
        assert "PubkeyAuthentication yes\n" in text


def names(content: bytes) -> list[str]:
    return [info.name for info in members_of(content)]


def last(content: bytes) -> tarfile.TarInfo:
    return members_of(content)[-1]


class TestHostileScripts:
    @pytest.fixture
    def made(self, request: pytest.FixtureRequest) -> bytes:
        return hostile.SCRIPTS[request.param]()

    @pytest.mark.parametrize("made", ["empty", "truncated", "garbage", "garbage-in-gzip", "lying-size"], indirect=True)
    def test_cannot_be_read_to_the_end(self, made: bytes) -> None:
        with pytest.raises((tarfile.TarError, EOFError, OSError)):
            with tarfile.open(fileobj=io.BytesIO(made), mode="r:gz") as archive:
                for info in archive:
                    source = archive.extractfile(info)
                    content = source.read(1 << 20) if source is not None else b""
                    assert info.size == len(content) or info.size > 1 << 20
            raise tarfile.ReadError("empty") if not made else AssertionError("it reads well")

    def test_the_small_ones_start_like_a_good_payload(self) -> None:
        good = names(payloads.build_scripts(releases.new()))
        for name in ("parent-path", "absolute-path", "symlink-out", "device", "setuid", "non-utf8-name"):
            assert names(hostile.SCRIPTS[name]())[: len(good)] == good, name

    @pytest.mark.parametrize("made", ["parent-path"], indirect=True)
    def test_a_path_climbs_out(self, made: bytes) -> None:
        assert ".." in Path(last(made).name).parts

    @pytest.mark.parametrize("made", ["absolute-path"], indirect=True)
    def test_a_path_is_absolute(self, made: bytes) -> None:
        with tarfile.open(fileobj=io.BytesIO(made)) as archive:
            assert archive.getmembers()[-1].name.startswith("/")

    @pytest.mark.parametrize("made", ["symlink-out"], indirect=True)
    def test_a_symlink_leaves(self, made: bytes) -> None:
        assert (last(made).issym(), last(made).linkname) == (True, "/etc/shadow")

    @pytest.mark.parametrize("made", ["write-through-symlink"], indirect=True)
    def test_a_file_lies_below_a_link(self, made: bytes) -> None:
        link, below = members_of(made)[-2:]
        assert link.issym()
        assert below.name.startswith(link.name + "/")

    @pytest.mark.parametrize("made", ["hardlink-out"], indirect=True)
    def test_a_hard_link_leaves(self, made: bytes) -> None:
        assert last(made).islnk()
        assert last(made).linkname.endswith("etc/shadow")

    @pytest.mark.parametrize("made", ["device"], indirect=True)
    def test_a_device_is_in_it(self, made: bytes) -> None:
        assert last(made).ischr()

    @pytest.mark.parametrize("made", ["fifo"], indirect=True)
    def test_a_fifo_is_in_it(self, made: bytes) -> None:
        assert last(made).isfifo()

    @pytest.mark.parametrize("made", ["setuid"], indirect=True)
    def test_a_file_is_setuid(self, made: bytes) -> None:
        assert last(made).mode & stat.S_ISUID

    def test_the_bomb_is_small_and_unpacks_to_gigabytes(self) -> None:
        made = hostile.SCRIPTS["bomb"]()
        assert len(made) < 6 * 2**20
        with tarfile.open(fileobj=io.BytesIO(made), mode="r|gz") as archive:
            *_, bomb = itertools.islice(archive, len(names(payloads.build_scripts(releases.new()))) + 1)
            assert (bomb.name, bomb.size) == ("opt/cloud/bin/zeros", hostile.BOMB_BYTES)
        with gzip.open(io.BytesIO(made)) as stream:
            unpacked = sum(len(stream.read(1 << 20)) for _ in range(200))
        assert unpacked == 200 << 20

    def test_a_million_entries_are_a_small_file(self) -> None:
        made = hostile.SCRIPTS["many-entries"]()
        assert len(made) < 32 * 2**20
        with gzip.open(io.BytesIO(made)) as stream:
            blocks = iter(lambda: stream.read(512 * 4000), b"")
            headers = sum(block.count(b"ustar") for block in blocks)
        assert headers == hostile.MANY_ENTRIES

    def test_duplicates_disagree_about_their_kind(self) -> None:
        first, second = members_of(hostile.SCRIPTS["conflicting-duplicates"]())[-2:]
        assert first.name == second.name
        assert (first.isfile(), second.isdir()) == (True, True)

    def test_a_file_takes_the_name_of_a_folder(self) -> None:
        members = members_of(hostile.SCRIPTS["file-for-folder"]())
        assert members[-1].isfile()
        assert any(info.isdir() and info.name == members[-1].name for info in members)

    def test_a_name_is_no_utf8(self) -> None:
        with pytest.raises(UnicodeEncodeError):
            last(hostile.SCRIPTS["non-utf8-name"]()).name.encode("utf-8")

    def test_a_name_has_two_lines(self) -> None:
        assert "\n" in last(hostile.SCRIPTS["newline-in-name"]()).name

    def test_nothing_tells_the_algorithm(self) -> None:
        assert EARLY_CONFIG not in names(hostile.SCRIPTS["no-early-config"]())

    def test_it_brings_a_file_that_belongs_to_the_vm(self) -> None:
        assert last(hostile.SCRIPTS["runtime-file"]()).name == "root/.ssh/authorized_keys"

    def test_every_one_is_named_here(self) -> None:
        assert len(hostile.SCRIPTS) == 21


def infos(name: str) -> list[zipfile.ZipInfo]:
    with zipfile.ZipFile(io.BytesIO(hostile.AGENT[name]())) as archive:
        return archive.infolist()


class TestHostileAgent:
    @pytest.mark.parametrize("name", ["empty", "truncated", "garbage", "non-utf8-name"])
    def test_cannot_be_listed(self, name: str) -> None:
        with pytest.raises((zipfile.BadZipFile, UnicodeDecodeError)):
            infos(name)

    def test_a_member_is_corrupt(self) -> None:
        with zipfile.ZipFile(io.BytesIO(hostile.AGENT["corrupt-member"]())) as archive:
            assert len(archive.namelist()) == 456
            with pytest.raises((zipfile.BadZipFile, zlib.error)):
                archive.read(releases.AGENT_JAR)

    def test_paths_climb_out_or_are_absolute(self) -> None:
        assert infos("parent-path")[-1].filename.startswith("../")
        assert infos("absolute-path")[-1].filename.startswith("/")

    @pytest.mark.parametrize(
        ("name", "position", "test"),
        [
            ("symlink-out", -1, stat.S_ISLNK),
            ("write-through-symlink", -2, stat.S_ISLNK),
            ("device", -1, stat.S_ISCHR),
            ("setuid", -1, lambda mode: mode & stat.S_ISUID),
        ],
    )
    def test_a_member_is_no_plain_file(self, name: str, position: int, test: Callable[[int], object]) -> None:
        assert test(infos(name)[position].external_attr >> 16)

    def test_a_file_lies_below_a_link(self) -> None:
        link, below = infos("write-through-symlink")[-2:]
        assert below.filename.startswith(link.filename + "/")

    def test_the_bomb_is_small_and_unpacks_to_a_gigabyte(self) -> None:
        made = hostile.AGENT["bomb"]()
        assert len(made) < 2 * 2**20
        with zipfile.ZipFile(io.BytesIO(made)) as archive:
            (info,) = archive.infolist()
            assert info.file_size == hostile.BOMB_BYTES // 4
            with archive.open(info) as stream:
                assert len(stream.read(64 << 20)) == 64 << 20

    def test_it_has_very_many_members(self) -> None:
        assert len(infos("many-members")) == hostile.MANY_MEMBERS

    def test_names_conflict(self) -> None:
        first, second = infos("conflicting-duplicates")[-2:]
        assert second.filename == first.filename + "/"
        shadowed = infos("file-for-folder")
        assert f"{shadowed[-1].filename}/" in {info.filename for info in shadowed}

    def test_a_member_is_encrypted(self) -> None:
        assert infos("encrypted")[0].flag_bits & 1

    def test_every_one_is_named_here(self) -> None:
        assert len(hostile.AGENT) == 16
