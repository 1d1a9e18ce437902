"""The program for the VM, packed.

Exists because the program travels with the session: a VM runs exactly the program of the operator that talks to it,
nothing has to be installed first, and a look at a VM (a full disk included) writes nothing to it. Only a VM that keeps
this very program with a backup, as its digest proves, is not sent it again.
"""

import ast
import hashlib
import io
import shlex
import struct
import tokenize
import zipfile
import zlib
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

PACKAGE = "sysvm_remote"
"""Name of the package inside the bundle: another one than here, so that nothing of ours can be imported by accident."""

_STUB = """
import sys,os,struct,zlib,hashlib,stat
W=sys.argv.pop(1)
R=sys.argv[2] if sys.argv[1]=="--root" else ""
FOLDER=R+"/var/lib/sysvm/program/"+W
def kept():
    try:
        f=os.open(FOLDER+"/sysvm.pyz",os.O_RDONLY|os.O_NOFOLLOW|os.O_NONBLOCK)
        s=os.fstat(f)
        if not stat.S_ISREG(s.st_mode) or s.st_uid!=os.geteuid() or s.st_size>1<<24: return
        b=os.fdopen(f,"rb").read()
    except OSError: return
    if hashlib.sha256(b).hexdigest()==W: return b
def take(n):
    b=b""
    while len(b)<n:
        c=os.read(0,n-len(b))
        if not c: sys.exit("no program arrived")
        b+=c
    return b
PROGRAM=kept()
A=b'{"program":"%s"}'%(b"wanted" if PROGRAM is None else b"kept")
os.write(1,b"\\0SYSVM/1\\nJ"+struct.pack(">I",len(A))+A)
if PROGRAM is None: PROGRAM=zlib.decompress(take(struct.unpack(">I",take(4))[0]))
if hashlib.sha256(PROGRAM).hexdigest()!=W: sys.exit("another program arrived")
l,n,x=struct.unpack("<IHH",PROGRAM[22:30])
exec(compile(PROGRAM[30+n+x:][:l],"sysvm_remote/start.py","exec"))
"""
"""Takes the program from the VM's disk if exactly this one lies there, else from its input. Its first entry is `start`,
as it is."""


@dataclass(frozen=True, slots=True)
class Bundle:
    """`content` is a zip that `python3 FILE.pyz` runs; the same files give the same bytes.

    `packed` is how it travels: the zip holds its files as they are and is compressed as a whole, which is a quarter
    smaller than files compressed one by one.
    """

    content: bytes = field(repr=False)
    packed: bytes = field(repr=False)
    digest: str

    def preamble(self) -> bytes:
        """What is written to the program's standard input if it says that it wants it."""
        return struct.pack(">I", len(self.packed)) + self.packed


@cache
def bundle() -> Bundle:
    """The program as it lies in this package."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        folder = resources.files("sysvm.patching.remote")
        modules = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".py"))
        _add(archive, "__main__.py", (folder / "start.py").read_text(encoding="utf-8"))
        for name in modules:
            _add(archive, f"{PACKAGE}/{name}", (folder / name).read_text(encoding="utf-8"))
    content = made.getvalue()
    return Bundle(content, zlib.compress(content, 9), hashlib.sha256(content).hexdigest())


def _add(archive: zipfile.ZipFile, name: str, text: str) -> None:
    # A fixed time and mode: the digest speaks of the content alone.
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_STORED
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, _without_words(text).encode())


def _without_words(text: str) -> str:
    """The module without comments and docstrings, every line where it was: they are a third of what would travel."""
    lines = text.split("\n")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
            continue
        for said in node.body:
            if (
                isinstance(said, ast.Expr)
                and isinstance(said.value, ast.Constant)
                and isinstance(said.value.value, str)
            ):
                first, last = said.lineno - 1, said.end_lineno or said.lineno
                lines[first:last] = [""] * (last - first)
                if len(node.body) == 1:
                    lines[first] = " " * said.col_offset + "pass"
    return "\n".join(lines)


def command(*arguments: str, python: str = "python3") -> str:
    """The shell command that starts a session; `arguments` are for tests (`--root DIR`).

    By the digest a VM knows the program on its disk, and does not ask for it. Isolated (`-I`): nothing of the working
    folder or the environment is imported. No bytecode is written (`-B`).
    """
    words = [python, "-I", "-B", "-c", _STUB.strip("\n"), bundle().digest, *arguments, "serve"]
    return shlex.join(words)
