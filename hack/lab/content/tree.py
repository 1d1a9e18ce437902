"""Writing into a root file system that is not the own one.

An absolute link inside it (``/etc/resolv.conf -> /run/...``) means another file to us than to the VM, so every path is
resolved within the root, component by component, and the last one is replaced, never followed.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path, PurePosixPath

_LONGEST_CHAIN = 40


class Tree:
    """Files below one root, named by their paths inside it (``/etc/hosts`` or ``etc/hosts``)."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, inside: str) -> Path:
        """Where ``inside`` lies for us: links in its folders are followed within the root, the last name is not."""
        name = PurePosixPath("/") / inside
        return self._resolved(name.parent, depth=0) / name.name

    def _resolved(self, inside: PurePosixPath, *, depth: int) -> Path:
        if depth > _LONGEST_CHAIN:
            raise OSError(f"too many links on the way to {inside}")
        here = self._root
        parts = inside.parts[1:]
        for position, part in enumerate(parts):
            if part == "..":
                here = here if here == self._root else here.parent
                continue
            step = here / part
            if step.is_symlink():
                target = PurePosixPath("/", here.relative_to(self._root), os.readlink(step))
                rest = parts[position + 1 :]
                return self._resolved(PurePosixPath(*target.parts, *rest), depth=depth + 1)
            here = step
        return here

    def folder(self, inside: str, *, mode: int = 0o755, uid: int = 0) -> None:
        """Makes a folder and its parents where they are missing; one that is there keeps its mode and owner."""
        path = self._resolved(PurePosixPath("/") / inside, depth=0)
        missing = []
        while not path.exists():
            missing.append(path)
            path = path.parent
        for folder in reversed(missing):
            folder.mkdir()
            folder.chmod(mode)
            os.chown(folder, uid, uid)

    def write(self, inside: str, content: bytes | str, *, mode: int = 0o644, uid: int = 0) -> None:
        """Replaces a file, or the link that is there, by a file of this content, mode and owner (user and group)."""
        self.folder(str(PurePosixPath("/", inside).parent))
        path = self.path(inside)
        part = path.with_name(f".{secrets.token_hex(6)}.part")
        part.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        part.chmod(mode)
        os.chown(part, uid, uid)
        part.replace(path)

    def link(self, inside: str, target: str) -> None:
        """Replaces whatever file or link is there by a symbolic link; ``target`` is as the VM will read it."""
        self.folder(str(PurePosixPath("/", inside).parent))
        path = self.path(inside)
        path.unlink(missing_ok=True)
        path.symlink_to(target)

    def read(self, inside: str) -> bytes:
        """The content of a regular file. Raises FileNotFoundError, or OSError for a link or anything else."""
        path = self.path(inside)
        if not stat.S_ISREG(path.lstat().st_mode):
            raise OSError(f"{inside} is no regular file")
        return path.read_bytes()

    def remove(self, inside: str) -> None:
        """Removes a file or link if it is there."""
        self.path(inside).unlink(missing_ok=True)

    def give(self, inside: str, uid: int) -> None:
        """Changes the owner (user and group) of a folder and everything in it."""
        top = self._resolved(PurePosixPath("/") / inside, depth=0)
        for folder, folders, files in os.walk(top):
            for name in ("", *folders, *files):
                os.chown(Path(folder) / name, uid, uid, follow_symlinks=False)
