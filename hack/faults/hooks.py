"""What is put into the program to make a fault happen at one of its changes, or at any of its instructions."""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

from typing_extensions import Buffer

from sysvm.patching.remote import files

if TYPE_CHECKING:
    from _typeshed import TraceFunction

KILLED = 137
REMOTE = os.path.dirname(files.__file__)
Act = Callable[[str], None]


class Hook(files.Faults):
    """Takes the place of the program's own `Faults`: does something before or after the n-th change."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # the program for the VM has no annotations
        self.names: list[str] = []
        self._before: Act | None = None
        self._after: Act | None = None
        self._from = 0
        self._until = 0
        self._busy = False

    @classmethod
    def arm_here(
        cls, first: int = 0, *, before: Act | None = None, after: Act | None = None, last: int | None = None
    ) -> Hook:
        """In this process: `before` and `after` are called with the change's name, from the `first` to the `last`."""
        hook = cls()
        hook._before, hook._after = before, after
        hook._from, hook._until = first, first if last is None else last
        files.FAULTS = hook
        return hook

    @staticmethod
    def disarm() -> None:
        files.FAULTS = files.Faults()

    def before(self, name: str) -> None:
        if self._busy:
            return
        self.names.append(name)
        self._do(self._before, name)

    def after(self) -> None:
        if not self._busy:
            self._do(self._after, self.names[-1])

    def _do(self, act: Act | None, name: str) -> None:
        if act is None or not self._from <= len(self.names) <= self._until:
            return
        # What the act itself changes is no change of the program.
        self._busy = True
        try:
            act(name)
        finally:
            self._busy = False


def die(_name: str = "") -> None:
    os._exit(KILLED)


def refuse(code: int) -> Act:
    """The system refuses the change."""

    def act(name: str) -> None:
        raise OSError(code, os.strerror(code), name)

    return act


def refuse_some(code: int, names: tuple[str, ...]) -> Act:
    def act(name: str) -> None:
        if name in names:
            raise OSError(code, os.strerror(code), name)

    return act


def tear_writes(number: int) -> None:
    """In this process: the n-th write or record reaches the disk by half, and the process is killed."""
    write, pwrite = os.write, os.pwrite
    seen = 0

    def due() -> bool:
        nonlocal seen
        seen += 1
        return seen == number

    def torn_write(descriptor: int, content: Buffer) -> int:
        if due():
            write(descriptor, _half(content))
            die()
        return write(descriptor, content)

    def torn_pwrite(descriptor: int, content: Buffer, offset: int) -> int:
        if due():
            pwrite(descriptor, _half(content), offset)
            die()
        return pwrite(descriptor, content, offset)

    os.write, os.pwrite = torn_write, torn_pwrite


def _half(content: Buffer) -> bytes:
    whole = bytes(content)
    return whole[: len(whole) // 2]


_GET_FLAGS, _SET_FLAGS, _IMMUTABLE = 0x80086601, 0x40086602, 0x10


def set_immutable(path: str, immutable: bool) -> bool:
    """chattr +i or -i; False where the file system or the user cannot."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return False
    try:
        flags = bytearray(8)
        fcntl.ioctl(descriptor, _GET_FLAGS, flags)
        now = int.from_bytes(flags[:4], sys.byteorder)
        wanted = now | _IMMUTABLE if immutable else now & ~_IMMUTABLE
        fcntl.ioctl(descriptor, _SET_FLAGS, wanted.to_bytes(4, sys.byteorder) + bytes(4))
        return True
    except OSError:
        return False
    finally:
        os.close(descriptor)


def jump(seconds: float) -> Act:
    """The wall clock jumps, and stays there."""

    def act(_name: str) -> None:
        kept = time.time
        time.time = lambda: kept() + seconds

    return act


class Instructions:
    """Counts the bytecode instructions of the program's own modules; at the n-th the process dies."""

    def __init__(self, last: int | None) -> None:
        self.count = 0
        self._last = last

    def start(self) -> None:
        sys.settrace(self._call)

    def stop(self) -> None:
        sys.settrace(None)

    def _call(self, frame: FrameType, _event: str, _argument: object) -> TraceFunction | None:
        if not frame.f_code.co_filename.startswith(REMOTE):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        return self._instruction

    def _instruction(self, _frame: FrameType, event: str, _argument: object) -> TraceFunction:
        if event == "opcode":
            self.count += 1
            if self.count == self._last:
                os._exit(KILLED)
        return self._instruction
