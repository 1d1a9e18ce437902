"""What the benchmark's page says of its numbers."""

from __future__ import annotations

from pathlib import Path

from bench import cases, change, report
from bench.cases import Case
from bench.measure import Sample, median
from lab.content import releases


def sample(seconds: float, sent_bytes: int = 0) -> Sample:
    return Sample(seconds, 0.5, sent_bytes, 0, 1)


def test_a_median_is_taken_of_each_number_alone() -> None:
    found = median([Sample(1, 30, 5, 0, 1), Sample(2, 10, 7, 0, 1), Sample(9, 20, 6, 0, 1)])
    assert (found.seconds, found.cpu_seconds, found.sent_bytes) == (2, 20, 6)


def test_a_contestant_on_fewer_vms_is_compared_vm_by_vm() -> None:
    case = Case("a", vms=20, vms_of={cases.SERIAL: 5})
    case.add(cases.OURS, sample(10))
    case.add(cases.SERIAL, sample(30))
    assert cases.ratio(case, cases.SERIAL) == 12


def test_a_missed_target_is_said() -> None:
    case = Case("a. routers", vms=20)
    case.add(cases.OURS, sample(10))
    case.add(cases.ANSIBLE, sample(79))
    case.add(cases.LOOP, sample(11))
    page = report.page({"a": case}, command="make bench", idle_cores=0.1)
    assert "- **missed**: 7.90 times as fast as Ansible playbook (at least 8)" in page
    assert "- kept: 1.10 times as fast as ssh/scp loop, same guarantees (at least 1)" in page


def test_a_transfer_may_take_a_little_longer_and_no_more() -> None:
    case = Case("b. agent", vms=8)
    case.add(cases.OURS, sample(13.1))
    case.add(cases.RAW, sample(10))
    page = report.page({"b": case}, command="make bench", idle_cores=0.1)
    assert "- **missed**: 1.31 times the time of raw OpenSSH (at most 1.3)" in page


def test_the_bytes_of_one_jar_are_held_against_its_size() -> None:
    for sent, word in ((505_536, "kept"), (505_537, "**missed**")):
        case = Case("c. jar", vms=1, limit_bytes=1.1 * 400_000 + 65_536)
        case.add(cases.OURS, sample(1, sent))
        assert f"- {word}: {sent:,} bytes" in report.page({"c": case}, command="make bench", idle_cores=0.1)


def test_every_run_gets_another_change_of_exactly_ten_files(tmp_path: Path) -> None:
    old, first, second = releases.old(), change.ten_files(1), change.ten_files(2)
    assert sorted(path for path in old.scripts if old.scripts[path] != first.scripts[path]) == sorted(change.FILES)
    assert all(first.scripts[path] != second.scripts[path] for path in change.FILES)
    assert len(change.FILES) == 10
    written = change.write(first, tmp_path / "change")
    assert all((written.tree / path).read_bytes() == first.scripts[path] for path in change.FILES)
