"""The payloads of a run. A change is new for every contestant and every repeat, so that nobody finds it done."""

from __future__ import annotations

import hashlib
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

from lab.content import filler, payloads, releases
from lab.content.releases import AGENT_JAR, SECURITY_CONF, Release

FILES = (
    SECURITY_CONF,
    "opt/cloud/bin/configure.py",
    "opt/cloud/bin/cs/CsApp.py",
    "opt/cloud/bin/cs/CsDhcp.py",
    "opt/cloud/bin/cs/CsFile.py",
    "opt/cloud/bin/cs/CsLoadBalancer.py",
    "opt/cloud/bin/cs/CsMonitor.py",
    "opt/cloud/bin/cs/CsRedundant.py",
    "root/health_checks/disk_space_check.py",
    "root/health_checks/dns_check.py",
)
"""Ten files: a Python package, two health checks, and one setting of apache2, for which it is reloaded."""


@dataclass(frozen=True)
class Change:
    """One 10-file change as files on disk, for contestants that need some."""

    folder: Path
    files: tuple[str, ...]
    signature: str

    @property
    def scripts(self) -> Path:
        return self.folder / "cloud-scripts.tgz"

    @property
    def archive(self) -> Path:
        """The ten files alone, packed for `tar -xz`."""
        return self.folder / "change.tgz"

    @property
    def tree(self) -> Path:
        return self.folder / "tree"


def ten_files(number: int) -> Release:
    """The old release with ten files changed, differently for each number."""
    old = releases.old()
    line = f"# change {number:06d}\n".encode()
    return old.derive(f"bench-{number}", change={path: old.scripts[path] + line for path in FILES})


def write(release: Release, folder: Path) -> Change:
    """Everything of the change that has to be copied."""
    folder.mkdir(parents=True)
    scripts = payloads.build_scripts(release)
    signature = payloads.checksum(release, scripts)
    change = Change(folder, FILES, signature)
    change.scripts.write_bytes(scripts)
    with tarfile.open(change.archive, "w:gz", compresslevel=6) as archive:
        for path in FILES:
            content = release.scripts[path]
            place = change.tree / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
            info = tarfile.TarInfo(path)
            info.size, info.mode, info.uname, info.gname = len(content), _mode(path), "root", "root"
            archive.addfile(info, io.BytesIO(content))
    sums = "".join(f"{hashlib.sha256(release.scripts[path]).hexdigest()}  {path}\n" for path in FILES)
    (folder / "sums").write_text(sums)
    (folder / "signature").write_text(signature + "\n")
    return change


def _mode(path: str) -> int:
    return 0o755 if path.endswith(".py") else 0o644


def one_jar(number: int, size_bytes: int) -> tuple[Release, int]:
    """The old release with one jar of the agent changed, and the size of that jar as a zip packs it."""
    content = filler.incompressible(f"jar {number}", size_bytes)
    return releases.old().derive(f"jar-{number}", agent_change={AGENT_JAR: content}), size_bytes
