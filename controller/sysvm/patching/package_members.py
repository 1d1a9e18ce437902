"""What both kinds of package are to those who read them: a name, and files one after the other."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from sysvm.patching.archives import Tally, shown
from sysvm.patching.unpacking import PIECE_BYTES, PlainStream


@dataclass(frozen=True, slots=True)
class PackageName:
    name: str
    version: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"


@dataclass(frozen=True, slots=True)
class Member:
    """One entry. `path` has no leading `./` or slash and is as the package has it: not to be written to."""

    path: str
    size: int
    what: str
    """Empty for a plain file, else what it is: `a link`, `a folder`."""
    content: Callable[[], Iterator[bytes]]
    """In pieces, until the next entry is asked for."""
    target: str = ""
    """Of a symbolic link in a Debian package, as it is written there."""


def plain_path(name: str) -> str:
    return name.removeprefix("./").removeprefix("/")


def content_of(plain: PlainStream, path: str, size: int, tally: Tally) -> Iterator[bytes]:
    """The next `size` bytes."""
    while size > 0:
        part = plain.take(min(PIECE_BYTES, size))
        if not part:
            raise tally.unreadable(f"was cut: it ends in the middle of {shown(path)}")
        size -= len(part)
        yield part
