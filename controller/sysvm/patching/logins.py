"""The operator's half of proving the way in: a new login while the VM waits for one.

sshd takes a configuration that lets nobody in, and the connection that is open says nothing about the next one. The VM
goes back by itself unless a connection opened after the reload tells it that logins work.
"""

import asyncio
from types import TracebackType
from typing import Self

from sysvm.patching import protocol
from sysvm.patching.errors import PatchingError
from sysvm.patching.results import Target
from sysvm.patching.session import open_session
from sysvm.patching.ssh import SSHTransport

_REQUEST_SECONDS = 20.0
_AGAIN_SECONDS = 1.0
RSA_SIGNATURES = ("ssh-rsa",)
"""What the SSH library of CloudStack's management server signs with; OpenSSH has to be told to accept it since 8.8."""


class LoginProof:
    """Watches the reports of one operation; when the VM awaits a login, makes one. Ends with its block.

    `rsa_before`: whether a login signed with `ssh-rsa` worked before the patch; only then it must afterwards.
    """

    def __init__(
        self, transport: SSHTransport, target: Target, operation_id: str, start: str | None, *, rsa_before: bool
    ) -> None:
        self._transport = transport
        self._target = target
        self._operation_id = operation_id
        self._start = start
        self._rsa_before = rsa_before
        self._awaited = asyncio.Event()
        self._group = asyncio.TaskGroup()
        self._task: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        await self._group.__aenter__()
        self._task = self._group.create_task(self._prove_when_awaited())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._task is not None:
            self._task.cancel()
        # The group has this one task, which lets no failure out but its own cancellation: errors of the block pass.
        await self._group.__aexit__(None, None, None)

    def saw(self, report: protocol.Report) -> None:
        """To be given every report."""
        if report.get("awaiting") == "login":
            self._awaited.set()

    async def _prove_when_awaited(self) -> None:
        await self._awaited.wait()
        while True:
            try:
                await self._prove()
            except PatchingError:
                # Not let in, or not now: the VM's own clock decides how often this is worth trying.
                await asyncio.sleep(_AGAIN_SECONDS)
            else:
                return

    async def _prove(self) -> None:
        if self._rsa_before:
            async with self._transport.connect(self._target, beside=True, signatures=RSA_SIGNATURES):
                pass
        async with (
            self._transport.connect(self._target, beside=True) as connection,
            open_session(connection.ssh, self._target.name, self._start) as session,
        ):
            args: protocol.ProveLoginArgs = {"id": self._operation_id}
            await session.request("prove-login", {**args}, protocol.ProveLoginResult, timeout=_REQUEST_SECONDS)


async def rsa_works(transport: SSHTransport, target: Target) -> bool:
    """Whether a login that is signed the management server's way works now; False for keys of another kind."""
    if not await transport.has_rsa_key(target.account):
        return False
    try:
        async with transport.connect(target, beside=True, signatures=RSA_SIGNATURES):
            return True
    except PatchingError:
        return False
