"""One conversation with the program on a VM: requests, events and bytes over one SSH channel.

Frames are in `framing`; here is what can only be said with a connection at hand: time limits, byte counts,
back pressure, and what a VM means that answers with anything else.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import TypeVar

import asyncssh

from sysvm.api.reasons import Reason
from sysvm.patching import framing, protocol
from sysvm.patching.bundle import Bundle, bundle, command
from sysvm.patching.errors import PatchingError, Unreachable
from sysvm.patching.framing import BytesFrame, Frame, JSONFrame, ProtocolError

_STDERR_BYTES = 16 * 1024
_BUFFERED_BYTES = 64 << 20
_HELLO_SECONDS = 30.0
_CLOSE_SECONDS = 3.0

T = TypeVar("T")
OnReport = Callable[[protocol.Report], None]


class RemoteFailure(PatchingError):  # noqa: N818 - the VM's own word for it
    """The VM answered a request with an error. `changed` False: nothing of its files or services was changed by it."""

    def __init__(self, error: protocol.ErrorValue) -> None:
        super().__init__(error["message"], reason=error["reason"], retryable=error["retryable"])
        self.changed = error["changed"]


class Session:
    """Speaks with the program. Made by `open_session`; one request at a time."""

    def __init__(self, name: str, channel: "_Channel", process: asyncssh.SSHClientChannel[bytes]) -> None:
        self._name = name
        self._channel = channel
        self._process = process
        self._last_id = 0

    @property
    def bytes_sent(self) -> int:
        """Since the session was opened, the program included where it was sent."""
        return self._channel.bytes_sent

    @property
    def bytes_received(self) -> int:
        return self._channel.bytes_received

    async def request(
        self,
        verb: protocol.Verb,
        args: Mapping[str, object],
        result: type[T],
        *,
        timeout: float,  # noqa: ASYNC109 - a limit of the VM's work, with an error of its own
        content: AsyncIterator[bytes] | None = None,
        on_report: OnReport | None = None,
    ) -> T:
        """Asks and waits at most `timeout` seconds for the answer.

        `content` is sent right behind the request, in pieces that become byte frames. Raises `RemoteFailure`,
        `ProtocolError`, or `Unreachable` when the connection is lost or the VM takes too long.
        """
        async with self._within(timeout, verb):
            number = await self._ask(verb, args, content)
            return await self._answer(number, result, on_report)

    async def request_all(
        self,
        verb: protocol.Verb,
        requests: Iterable[tuple[Mapping[str, object], AsyncIterator[bytes]]],
        result: type[T],
        *,
        timeout: float,  # noqa: ASYNC109 - as in request, for each
    ) -> list[T]:
        """Asks one after the other, each while the VM is still at work on the one before: nothing waits for its disk.

        Raises as `request` does; a failure of the VM when everything that was asked is answered, so that the next
        request finds its own answer.
        """
        waiting: list[int] = []
        answers: list[T] = []
        failure: RemoteFailure | None = None
        left = iter(requests)
        while True:
            following = next(left, None) if failure is None else None
            async with self._within(timeout, verb):
                if following is not None:
                    waiting.append(await self._ask(verb, *following))
                    if len(waiting) == 1:
                        continue
                if not waiting:
                    break
                try:
                    answers.append(await self._answer(waiting.pop(0), result, None))
                except RemoteFailure as error:
                    failure = failure or error
        if failure is not None:
            raise failure
        return answers

    @contextlib.asynccontextmanager
    async def _within(self, seconds: float, verb: protocol.Verb) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds):
                yield
        except TimeoutError as error:
            raise Unreachable(
                f"{self._name} did not answer {verb} within {seconds:g} s{self._channel.said()}",
                reason=Reason.SSH_TIMEOUT,
            ) from error

    async def _ask(
        self, verb: protocol.Verb, args: Mapping[str, object], content: AsyncIterator[bytes] | None = None
    ) -> int:
        self._last_id += 1
        request: protocol.Request = {"id": self._last_id, "verb": verb, "args": args}
        await self._channel.send(framing.encode_json(request))
        if content is not None:
            async for piece in content:
                for frame in framing.encode_bytes(piece):
                    await self._channel.send(frame)
        return self._last_id

    async def read(self, path: str, *, limit: int, timeout: float) -> bytes | None:  # noqa: ASYNC109 - as in request
        """Content of a file of the VM; None: it is not there. Raises `ProtocolError` if it is longer than `limit`."""
        args: protocol.ReadArgs = {"path": path}
        result = await self.request("read", {**args}, protocol.ReadResult, timeout=timeout)
        size = result["size"]
        if size < 0:
            return None
        if size > limit:
            raise ProtocolError(f"{path} of {self._name} has {size} bytes, more than the {limit} that are read")
        content = bytearray()
        try:
            async with asyncio.timeout(timeout):
                while len(content) < size:
                    frame = await self._channel.next_frame()
                    if not isinstance(frame, BytesFrame):
                        raise ProtocolError(f"{self._name} broke off while it sent {path}")
                    content += frame.content
        except TimeoutError as error:
            raise Unreachable(f"{self._name} did not send {path} in time", reason=Reason.SSH_TIMEOUT) from error
        return bytes(content)

    async def _answer(self, number: int, result: type[T], on_report: OnReport | None) -> T:
        while True:
            frame = await self._channel.next_frame()
            if not isinstance(frame, JSONFrame):
                raise ProtocolError(f"{self._name} sent bytes where an answer was expected")
            if "report" in frame.value:
                event = protocol.parse(protocol.Event, frame.value)
                if event["id"] == number and on_report is not None:
                    on_report(event["report"])
                continue
            response = protocol.parse(protocol.Response, frame.value)
            if response["id"] != number:
                raise ProtocolError(f"{self._name} answered request {response['id']} instead of {number}")
            if "error" in response:
                raise RemoteFailure(response["error"])
            if "result" not in response:
                raise ProtocolError(f"{self._name} gave an answer without a result")
            return protocol.parse(result, response["result"])

    async def hello(self, program: Bundle) -> protocol.Hello:
        """Sends the program if the VM lacks it, and waits for its first word."""
        try:
            async with asyncio.timeout(_HELLO_SECONDS):
                found = protocol.parse(protocol.Found, await self._first())
                if found["program"] == "wanted":
                    await self._channel.send(program.preamble())
                hello = protocol.parse(protocol.Hello, await self._first())
        except TimeoutError as error:
            raise Unreachable(
                f"{self._name} let in the login but did not start the program within {_HELLO_SECONDS:g} s"
                f"{self._channel.said()}",
                reason=Reason.SSH_TIMEOUT,
            ) from error
        if hello["version"] != framing.VERSION:
            raise ProtocolError(
                f"the program on {self._name} speaks version {hello['version']}, this operator {framing.VERSION}"
            )
        return hello

    async def _first(self) -> Mapping[str, object]:
        frame = await self._channel.next_frame()
        if not isinstance(frame, JSONFrame):
            raise ProtocolError(f"{self._name} sent bytes before its first word")
        return frame.value

    async def close(self) -> None:
        """Ends the input: the program leaves by itself; an operation that was run goes on."""
        with contextlib.suppress(OSError):
            self._process.write_eof()
        try:
            async with asyncio.timeout(_CLOSE_SECONDS):
                await self._process.wait_closed()
        except (TimeoutError, OSError, asyncssh.Error):
            self._process.abort()


@contextlib.asynccontextmanager
async def open_session(
    ssh: asyncssh.SSHClientConnection, name: str, start: str | None = None
) -> AsyncIterator[Session]:
    """Starts the program on the VM called `name`. `start`: the shell command, for tests.

    Raises `ProtocolError` (reason NotASystemVM if it has no Python) or `Unreachable`.
    """
    channel = _Channel(name)
    try:
        process, _ = await ssh.create_session(lambda: channel, start or command(), encoding=None)
    except (asyncssh.Error, OSError) as error:
        raise Unreachable(f"{name} opened no session: {error}", reason=Reason.CONNECTION_LOST) from error
    session = Session(name, channel, process)
    try:
        await session.hello(bundle())
        yield session
    except asyncio.CancelledError:
        process.abort()
        raise
    finally:
        await session.close()


class _Channel(asyncssh.SSHClientSession[bytes]):
    """The callbacks of asyncssh turned into `send` and `next_frame`, without a task of its own."""

    def __init__(self, name: str) -> None:
        self.bytes_sent = 0
        self.bytes_received = 0
        self._name = name
        self._decoder = framing.Decoder()
        self._frames: deque[Frame] = deque()
        self._buffered = 0
        self._stderr = bytearray()
        self._process: asyncssh.SSHClientChannel[bytes] | None = None
        self._news = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._end: PatchingError | None = None
        self._exit: int | None = None

    async def send(self, content: bytes) -> None:
        if self._end is not None:
            raise self._end
        if self._process is None or self._process.is_closing():
            raise self._lost()
        try:
            self._process.write(content)
        except OSError as error:
            raise self._lost() from error
        self.bytes_sent += len(content)
        await self._writable.wait()

    async def next_frame(self) -> Frame:
        while not self._frames:
            if self._end is not None:
                raise self._end
            self._news.clear()
            await self._news.wait()
        frame = self._frames.popleft()
        self._buffered -= frame.size
        return frame

    def said(self) -> str:
        """The end of what the VM wrote to standard error, for a sentence."""
        text = self._stderr.decode(errors="replace").strip()
        return f"; it said: {text[-600:]}" if text else ""

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._process = chan

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        self.bytes_received += len(data)
        if datatype is not None:
            self._stderr += data
            del self._stderr[:-_STDERR_BYTES]
            return
        if self._end is not None:
            return
        try:
            self._take(self._decoder.feed(data))
        except ProtocolError as error:
            self._finish(self._not_our_program(error))
        self._news.set()

    def _take(self, frames: Iterable[Frame]) -> None:
        for frame in frames:
            self._buffered += frame.size
            self._frames.append(frame)
            if self._buffered > _BUFFERED_BYTES:
                raise ProtocolError(f"{self._name} sends more than it was asked for")

    def exit_status_received(self, status: int) -> None:
        self._exit = status

    def eof_received(self) -> bool:
        if self._end is None:
            try:
                self._decoder.finish()
            except ProtocolError as error:
                self._finish(self._not_our_program(error))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._end is None:
            self._finish(self._lost() if self._exit is None else self._left(self._exit))

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _finish(self, error: PatchingError) -> None:
        self._end = error
        self._news.set()
        self._writable.set()

    def _lost(self) -> Unreachable:
        return Unreachable(
            f"The connection to {self._name} was lost in the middle of the conversation{self.said()}",
            reason=Reason.CONNECTION_LOST,
        )

    def _left(self, status: int) -> Unreachable:
        return Unreachable(
            f"The program on {self._name} ended with status {status} before it answered{self.said()}",
            reason=Reason.CONNECTION_LOST,
        )

    def _not_our_program(self, error: ProtocolError) -> ProtocolError:
        """The exit status comes after the end of output, so the words on standard error must do."""
        said = self.said()
        if self._exit == 127 or "not found" in said:
            return ProtocolError(
                f"{self._name} has no python3, which every CloudStack system VM has{said}: is it one?",
                reason=Reason.NOT_A_SYSTEM_VM,
                retryable=False,
            )
        return ProtocolError(f"{self._name}: {error}{said}")
