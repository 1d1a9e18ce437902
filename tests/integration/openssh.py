"""A real OpenSSH server of one test: own configuration, own host keys, a free port on loopback, gone with the test.

It is found on PATH or in a package root that the lab has made. As root it needs a user for privilege separation that
this machine may not have; then it runs in a mount namespace with an /etc/passwd of its own, and the machine keeps its.
"""

from __future__ import annotations

import asyncio
import contextlib
import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path

_READY_SECONDS = 15.0

_IN_A_NAMESPACE = """
set -e
mount --make-rprivate /
mount --bind "$1" /etc/passwd
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/sshd
shift
exec "$@"
"""


def find_sshd() -> Path | None:
    """The server's program; None if this machine has none."""
    found = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
    if found is not None:
        return Path(found)
    from lab import paths

    for candidate in sorted((paths.cache_dir() / "roots").glob("*/usr/sbin/sshd")):
        return candidate
    return None


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_key(folder: Path, name: str, kind: str = "ed25519", *, passphrase: str = "", form: str = "") -> Path:
    """A key pair made by ssh-keygen. `form` PEM: as CloudStack stores its own."""
    path = folder / name
    size = ["-b", "2048"] if kind == "rsa" else []
    extra = ["-m", form] if form else []
    subprocess.run(
        ["ssh-keygen", "-q", "-t", kind, *size, *extra, "-N", passphrase, "-C", name, "-f", str(path)],
        check=True,
        timeout=60,
    )
    return path


@dataclass
class OpenSSH:
    """Start it with `running`; host keys can be exchanged between two runs."""

    folder: Path
    authorized: list[Path]
    program: Path
    port: int = field(default_factory=free_port)
    host_keys: list[Path] = field(default_factory=list)
    pid: int | None = None

    def public_host_key(self, number: int = 0) -> str:
        return " ".join(Path(f"{self.host_keys[number]}.pub").read_text().split()[:2])

    @contextlib.contextmanager
    def running(self, *settings: str, address: str = "127.0.0.1") -> Iterator[OpenSSH]:
        log = self.folder / "sshd.log"
        process = subprocess.Popen(
            self._command(self._write_config(settings, address)),
            stdin=subprocess.DEVNULL,
            stdout=log.open("ab"),
            stderr=subprocess.STDOUT,
            env={**os.environ, **self._library_path()},
            start_new_session=True,
        )
        self.pid = process.pid
        try:
            self._await_port(process, log, address)
            yield self
        finally:
            self.stop_sessions()
            process.terminate()
            process.wait(10)
            self.pid = None

    def stop_sessions(self) -> None:
        """Cuts every connection by killing the processes that serve them."""
        if self.pid is None:
            return
        for child in _children(self.pid):
            for grandchild in _children(child):
                _kill(grandchild)
            _kill(child)

    def stop_commands(self) -> None:
        """Kills what runs in the sessions; the connections stay."""
        for child in _children(self.pid) if self.pid is not None else ():
            for grandchild in _children(child):
                _kill(grandchild)

    def _await_port(self, process: subprocess.Popen[bytes], log: Path, address: str) -> None:
        deadline = time.monotonic() + _READY_SECONDS
        while time.monotonic() < deadline:
            if process.poll() is not None:
                break
            with contextlib.suppress(OSError), socket.create_connection((address, self.port), 1):
                return
            time.sleep(0.02)
        raise RuntimeError(f"sshd did not start: {log.read_text()}")

    def _write_config(self, settings: tuple[str, ...], address: str) -> Path:
        keys = self.folder / "authorized_keys"
        keys.write_text("".join(Path(f"{key}.pub").read_text() for key in self.authorized))
        keys.chmod(0o600)
        config = self.folder / "sshd_config"
        lines = [
            f"Port {self.port}",
            f"ListenAddress {address}",
            *(f"HostKey {key}" for key in self.host_keys),
            f"AuthorizedKeysFile {keys}",
            "PubkeyAuthentication yes",
            "PasswordAuthentication no",
            "KbdInteractiveAuthentication no",
            "PermitRootLogin prohibit-password",
            "UsePAM no",
            "StrictModes no",
            f"PidFile {self.folder / 'sshd.pid'}",
            *settings,
        ]
        config.write_text("\n".join(lines) + "\n")
        return config

    def _command(self, config: Path) -> list[str]:
        start = [str(self.program), "-D", "-e", "-f", str(config)]
        if os.geteuid() != 0:
            return start
        passwd = self.folder / "passwd"
        own = Path("/etc/passwd").read_text()
        if "\nsshd:" not in own:
            own += "sshd:x:106:65534::/run/sshd:/usr/sbin/nologin\n"
        passwd.write_text(own)
        return ["unshare", "--mount", "sh", "-c", _IN_A_NAMESPACE, "sh", str(passwd), *start]

    def _library_path(self) -> dict[str, str]:
        """A server from a package root may need libraries that this machine lacks; only those are lent to it."""
        listed = subprocess.run(["ldd", str(self.program)], capture_output=True, text=True, timeout=30).stdout
        missing = [line.split()[0] for line in listed.splitlines() if "not found" in line]
        if not missing:
            return {}
        root = self.program.parents[2]
        lent = self.folder / "lib"
        lent.mkdir(exist_ok=True)
        for name in missing:
            source = next(iter(root.glob(f"usr/lib/*/{name}")), None) or next(iter(root.glob(f"lib/*/{name}")))
            link = lent / name
            if not link.exists():
                link.symlink_to(source)
        return {"LD_LIBRARY_PATH": str(lent)}


def user() -> str:
    return getpass.getuser()


GREETING = b"SSH-2.0-OpenSSH_9.2p1\r\n"
"""How an sshd begins."""


@contextlib.asynccontextmanager
async def silent_host(greeting: bytes = b"") -> AsyncIterator[int]:
    """A port that accepts connections and never says a word, or none after its greeting."""
    gone = asyncio.Event()

    async def accept(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await gone.wait()
        writer.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield int(server.sockets[0].getsockname()[1])
    finally:
        gone.set()
        server.close()
        await server.wait_closed()


def _children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, 9)
