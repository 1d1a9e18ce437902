"""New packaged text for files in which the VM itself writes lines.

Only `sshd_config` is merged, because a wrong one closes the door: the address it listens on and the signature
algorithms it accepts belong to the VM. Every other edited file is either still the old packaged text, and then the new
text replaces it, or it stays as it is and that is said.
"""

from collections.abc import Callable

_LISTEN = b"listenaddress"
_ALGORITHMS = b"pubkeyacceptedalgorithms"
_OWN = (_LISTEN, _ALGORITHMS)


def merge_sshd_config(live: bytes, new: bytes) -> bytes:
    """The packaged text with the VM's own `ListenAddress` and `PubkeyAcceptedAlgorithms` lines.

    CloudStack 4.21 common.sh (setup_sshd) writes the first at boot, patch.sh (patch_sshd_config) the second. Where the
    live file has none of a keyword, the packaged lines stay. Where nothing but those lines differs the live text is
    returned as it is: in which place the VM has put them does not matter.
    """
    if _packaged(live) == _packaged(new) and all(_own(live, word) or not _own(new, word) for word in _OWN):
        return live
    text = _keep(new, live, _LISTEN, after=(_LISTEN, b"port"))
    return _keep(text, live, _ALGORITHMS, after=(b"pubkeyauthentication",))


MERGES: dict[str, Callable[[bytes, bytes], bytes]] = {"etc/ssh/sshd_config": merge_sshd_config}
"""By path, `merge(live, new)`. An edited file that is not here is kept."""


def _keep(new: bytes, live: bytes, keyword: bytes, *, after: tuple[bytes, ...]) -> bytes:
    kept = _own(live, keyword)
    if not kept or kept == _own(new, keyword):
        return new
    ending = b"" if not new or new.endswith(b"\n") else b"\n"
    head_length = len(_global_lines(new))
    lines = (new + ending).splitlines(keepends=True)
    head, tail = lines[:head_length], lines[head_length:]
    head = [line for line in head if _keyword(line) != keyword]
    place = max((number + 1 for number, line in enumerate(head) if _anchors(line, after)), default=0)
    return b"".join([*head[:place], *(line + b"\n" for line in kept), *head[place:], *tail])


def _own(text: bytes, keyword: bytes) -> list[bytes]:
    return [line for line in _global_lines(text) if _keyword(line) == keyword]


def _packaged(text: bytes) -> list[bytes]:
    """All lines but those that the VM writes, and the comments that it writes them over (`sed` in setup_sshd)."""
    head = _global_lines(text)
    rest = text.splitlines()[len(head) :]
    return [line for line in head if not _anchors(line, _OWN)] + rest


def _global_lines(text: bytes) -> list[bytes]:
    """The lines before the first `Match`: only there do these keywords hold for everybody."""
    lines: list[bytes] = []
    for line in text.splitlines():
        if _keyword(line) == b"match":
            break
        lines.append(line)
    return lines


def _keyword(line: bytes) -> bytes:
    """sshd_config(5): keywords are case-insensitive and end at white space or one `=`."""
    words = line.replace(b"=", b" ", 1).split(None, 1)
    return words[0].lower() if words else b""


def _anchors(line: bytes, keywords: tuple[bytes, ...]) -> bool:
    """Whether a kept line may follow this one: the keyword itself or the packaged comment that shows it."""
    return _keyword(line.lstrip().removeprefix(b"#")) in keywords
