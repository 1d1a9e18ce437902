"""The program for the VM, packed.

Exists because the program travels with every session: a VM runs exactly the program of the operator that talks to it,
nothing has to be installed first, and a look at a VM (a full disk included) writes nothing to it.
"""

import hashlib
import io
import shlex
import struct
import zipfile
import zlib
from dataclasses import dataclass, field
from functools import cache
from importlib import resources

PACKAGE = "sysvm_remote"
"""Name of the package inside the bundle: another one than here, so that nothing of ours can be imported by accident."""

_STUB = """
import sys,os,struct,io,zlib,zipfile,importlib.abc,importlib.util
def take(n):
    b=b""
    while len(b)<n:
        c=os.read(0,n-len(b))
        if not c: sys.exit("no program arrived")
        b+=c
    return b
D=zlib.decompress(take(struct.unpack(">I",take(4))[0]))
Z=zipfile.ZipFile(io.BytesIO(D))
N=set(Z.namelist())
class F(importlib.abc.MetaPathFinder,importlib.abc.InspectLoader):
    def find_spec(self,name,path,target=None):
        b=name.replace(".","/")
        for p,k in ((b+"/__init__.py",True),(b+".py",False)):
            if p in N: return importlib.util.spec_from_loader(name,self,origin=p,is_package=k)
    def is_package(self,name): return name.replace(".","/")+"/__init__.py" in N
    def get_source(self,name):
        b=name.replace(".","/")
        return Z.read(b+"/__init__.py" if self.is_package(name) else b+".py").decode()
sys.meta_path.insert(0,F())
from sysvm_remote.main import main
sys.exit(main(sys.argv[1:],D))
"""


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
        """What is written to the program's standard input first."""
        return struct.pack(">I", len(self.packed)) + self.packed


@cache
def bundle() -> Bundle:
    """The program as it lies in this package."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        folder = resources.files("sysvm.patching.remote")
        modules = sorted(entry.name for entry in folder.iterdir() if entry.name.endswith(".py"))
        _add(archive, "__main__.py", f"import sys\nfrom {PACKAGE}.main import main\nsys.exit(main(sys.argv[1:]))\n")
        for name in modules:
            _add(archive, f"{PACKAGE}/{name}", (folder / name).read_text(encoding="utf-8"))
    content = made.getvalue()
    return Bundle(content, zlib.compress(content, 9), hashlib.sha256(content).hexdigest())


def _add(archive: zipfile.ZipFile, name: str, text: str) -> None:
    # A fixed time and mode: the digest speaks of the content alone.
    entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_STORED
    entry.external_attr = 0o644 << 16
    archive.writestr(entry, text.encode())


def command(*arguments: str, python: str = "python3") -> str:
    """The shell command that starts a session; `arguments` are for tests (`--root DIR`).

    Isolated (`-I`): nothing of the working folder or the environment is imported. No bytecode is written (`-B`).
    """
    return shlex.join([python, "-I", "-B", "-c", _STUB.strip("\n"), *arguments, "serve"])
