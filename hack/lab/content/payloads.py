"""Builds ``cloud-scripts.tgz`` and ``agent.zip`` of a release in the shape of the real ones.

Shape matters where a reader could stumble: folder entries with modes of their own, the duplicate logrotate entries,
mode 755 on configuration files, hundreds of members. Bytes are a function of the arguments; ``build_seed`` stands for
another build of the same files (other distribution, other day), with another checksum and the same content.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import random
import tarfile
import time
import zipfile
from pathlib import PurePosixPath

from lab.content import filler, manifests
from lab.content.releases import Release

_EPOCH = 1_745_000_000  # a day in April 2025, when 4.20.1 was built
DEFAULT_AGENT_SCALE = 0.02
"""Share of the real jar sizes that makes ``agent.zip`` about 2 MB."""


def build_scripts(release: Release, *, build_seed: int = 0) -> bytes:
    """``cloud-scripts.tgz`` of the release, equal for equal arguments."""
    draw = random.Random(f"scripts:{build_seed}")
    mtime = _EPOCH + build_seed * 86_400
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for entry in _script_entries(release, draw if build_seed else None):
            info = tarfile.TarInfo(entry.path)
            info.mode, info.uname, info.gname = entry.mode, "root", "root"
            info.mtime = mtime + draw.randrange(600) if build_seed else mtime
            if entry.folder:
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            else:
                content = release.scripts[entry.path]
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return gzip.compress(plain.getvalue(), compresslevel=9, mtime=mtime)


def _script_entries(release: Release, draw: random.Random | None) -> list[manifests.ScriptEntry]:
    """Folders first, then files; of a path that is there twice the executable entry comes first."""
    known = manifests.script_sizes()
    folders = [entry for entry in manifests.script_entries() if entry.folder]
    have = {entry.path for entry in folders}
    added = sorted(set(release.scripts) - set(known))
    for path in added:
        for parent in reversed(PurePosixPath(path).parents):
            if str(parent) not in {".", *have}:
                have.add(str(parent))
                folders.append(manifests.ScriptEntry(str(parent), True, 0o755, 0))
    files = [entry for entry in manifests.script_entries() if not entry.folder and entry.path in release.scripts]
    files += [manifests.ScriptEntry(path, False, 0o755, len(release.scripts[path])) for path in added]
    first = [entry for entry in files if entry.mode == 0o755]
    last = [entry for entry in files if entry.mode != 0o755]
    if draw is not None:
        draw.shuffle(first)
        draw.shuffle(last)
    return folders + first + last


def build_agent(release: Release, *, scale: float = DEFAULT_AGENT_SCALE, build_seed: int = 0) -> bytes:
    """``agent.zip`` of the release, equal for equal arguments.

    ``scale`` is the share of the real sizes that filler has: 1 gives about 90 MB.
    """
    draw = random.Random(f"agent:{build_seed}")
    stamp = time.gmtime(_EPOCH + build_seed * 86_400)[:6]
    known = {entry.path: entry for entry in manifests.agent_entries()}
    new = {path: len(body) for path, body in release.agent.items() if path not in known}
    added = [manifests.AgentEntry(path, size, size) for path, size in new.items()]
    entries = [entry for entry in known.values() if entry.path not in release.agent_removed] + added
    if build_seed:
        folders = [entry for entry in entries if entry.folder]
        rest = [entry for entry in entries if not entry.folder]
        draw.shuffle(rest)
        entries = folders + rest
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for entry in entries:
            info = zipfile.ZipInfo(entry.path, stamp)
            info.create_system = 3
            info.compress_type = zipfile.ZIP_DEFLATED if not entry.folder else zipfile.ZIP_STORED
            info.external_attr = _zip_mode(entry) << 16 | (0x10 if entry.folder else 0)
            archive.writestr(info, b"" if entry.folder else _member(release, entry, scale))
    return buffer.getvalue()


def _zip_mode(entry: manifests.AgentEntry) -> int:
    if entry.folder:
        return 0o40755
    return 0o100755 if entry.path.endswith(".sh") else 0o100644


def _member(release: Release, entry: manifests.AgentEntry, scale: float) -> bytes:
    if entry.path in release.agent:
        return release.agent[entry.path]
    size = entry.size if not entry.path.endswith(".jar") else entry.packed
    return filler.agent_filler(entry.path, min(size, max(64, round(size * scale))))


def checksum(release: Release, archive: bytes) -> str:
    """What belongs into ``cloud-scripts-signature`` for this archive, in hex: MD5 or SHA-512 by the release."""
    return hashlib.new(release.signature_algorithm, archive, usedforsecurity=False).hexdigest()
