"""Killing the program at each change it makes, and a judge who says what it left: the old VM, or the new one."""

from __future__ import annotations

from tests.remote.vm import NEW_SIGNATURE, OLD_SIGNATURE, VM, in_child

from sysvm.patching.remote import files

MODES = ("kill-before", "kill-after")


def count_changes(vm: VM, work) -> list[str]:
    """The names of the changes that `work` makes, found by running it once; the VM is then as after `work`."""
    files.FAULTS.arm("count:0")
    work()
    names = list(files.FAULTS.names)
    files.FAULTS.mode = None
    return names


def killed_at(work, mode: str, number: int) -> int:
    def child() -> None:
        files.FAULTS.arm(f"{mode}:{number}")
        work()

    return in_child(child)


class Judge:
    """Says whether a VM is the old or the new one, and nothing between."""

    def __init__(self, vm: VM) -> None:
        self.vm = vm
        self.old = vm.state()
        self.old_texts = vm.texts()
        self.services = vm.systemd()

    def learn_new(self) -> None:
        self.new_texts = self.vm.texts()

    def verdict(self, where: str) -> str:
        if self.vm.signature() == NEW_SIGNATURE:
            assert self.vm.texts().keys() == self.new_texts.keys(), where
            for path, row in self.vm.texts().items():
                # Without times: every build has its own
                assert row[:5][:4] == self.new_texts[path][:5][:4], (where, path)
                assert row[4:] == self.new_texts[path][4:], (where, path)
            return "new"
        messages = [report["message"] for _, report in self.vm.store().operations()]
        assert self.vm.signature() == OLD_SIGNATURE, (where, messages)
        now = self.vm.state()
        differing = [key for key in now.keys() | self.old.keys() if now.get(key) != self.old.get(key)]
        assert not differing, (where, differing)
        return "old"

    def settle_and_judge(self, where: str, *, at_boot: bool) -> str:
        """What the next boot, or the next session, makes of the VM."""
        vm = self.vm
        if at_boot:
            vm.recover()
        else:
            recover_by_next_session(vm)
            assert vm.systemd() == self.services, where
        phases = [report["phase"] for _, report in vm.store().operations()]
        verdict = self.verdict(where)
        assert phases in ([], ["Committed"]) if verdict == "new" else phases in ([], ["RolledBack"], ["Abandoned"]), (
            where
        )
        return verdict


def recover_by_next_session(vm: VM) -> None:
    session = vm.session()
    session.store.take_lock("next")
    session.recover_others(None)
    session.let_go()


def judge_of(vm: VM, order: dict) -> Judge:
    """One that knows the VM before this order and after it. The VM is then as before."""
    judge = Judge(vm)
    vm.prepare(order)
    vm.keep()
    assert vm.run("op-1")["phase"] == "Committed"
    judge.learn_new()
    vm.reset()
    return judge
