"""The first module of the program: it finds the others in the program's own bytes, and compiles each at most once.

Compiling is most of what a start costs. So where a VM has the program on its disk, what it compiled lies beside it: for
one program, one Python, with a digest over all; whatever does not fit is as if it were not there. In a session most
modules are loaded when they are first used, because a look needs few of them.

Runs as `__main__`: of the zip on the disk, or started by the operator's first words with `PROGRAM` set.
"""

import hashlib
import importlib
import importlib.util
import io
import marshal
import os
import stat
import sys
from importlib.machinery import ModuleSpec

PACKAGE = "sysvm_remote"
COMPILED = "compiled-" + (sys.implementation.cache_tag or "none")
MAX_BYTES = 16 * 1024 * 1024


class Modules(object):
    """Finder and loader of the program's modules (the protocols of importlib)."""

    def __init__(self, program, folder, spoken=False):
        """`spoken`: the other end has been told already that this is the program."""
        self.program = program
        self.spoken = spoken
        self.digest = hashlib.sha256(program).digest()
        self.folder = folder
        self.lazy = False
        self.codes = self.read() or {}
        self._archive = None

    # -------------------------------------------------------------------------------------- finder, loader

    def find_spec(self, name, path=None, target=None):
        if name != PACKAGE and not name.startswith(PACKAGE + "."):
            return None
        if name not in self.codes and self.place(name) not in self.archive.namelist():
            return None
        loader = importlib.util.LazyLoader(self) if self.lazy else self
        return ModuleSpec(name, loader, origin=self.place(name), is_package=name == PACKAGE)

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(self.code(module.__name__), module.__dict__)

    def get_source(self, name):
        return self.archive.read(self.place(name)).decode("utf-8")

    # -------------------------------------------------------------------------------------- code

    @property
    def archive(self):
        if self._archive is None:
            import zipfile  # costs as much as half of the program, and is seldom needed

            self._archive = zipfile.ZipFile(io.BytesIO(self.program))
        return self._archive

    @staticmethod
    def place(name):
        return name.replace(".", "/") + ("/__init__.py" if name == PACKAGE else ".py")

    def code(self, name):
        if name not in self.codes:
            self.codes[name] = compile(self.get_source(name), self.place(name), "exec", dont_inherit=True)
        return self.codes[name]

    # -------------------------------------------------------------------------------------- kept

    def head(self, body):
        """What must be as it is now for `body` to be believed."""
        key = self.digest + importlib.util.MAGIC_NUMBER
        return key + hashlib.sha256(key + body).digest()

    def read(self):
        content = kept(os.path.join(self.folder, COMPILED))
        if content is None:
            return None
        length = len(self.head(b""))
        body = content[length:]
        return marshal.loads(body) if content[:length] == self.head(body) else None

    def keep(self, folder):
        """Beside the program on the disk. Not there, not whole or not this one's, it is done without."""
        place = os.path.join(folder, COMPILED)
        if os.path.exists(place):
            return
        names = [name[:-3].replace("/", ".") for name in self.archive.namelist() if name.startswith(PACKAGE + "/")]
        for name in names:
            self.code(PACKAGE if name == PACKAGE + ".__init__" else name)
        body = marshal.dumps(self.codes)
        try:
            descriptor = os.open(place + ".new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(self.head(body) + body)
            os.rename(place + ".new", place)
        except OSError:
            pass


def kept(path):
    """Content of a file that nobody but us can have written; None: there is none."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
            return None
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return file.read(MAX_BYTES)
    finally:
        os.close(descriptor)


def start(modules, argv):
    """Run the program; returns its exit code."""
    # What changes the VM loads all of itself before it begins.
    modules.lazy = argv[-1:] == ["serve"]
    sys.meta_path.insert(0, modules)
    main = importlib.import_module(PACKAGE + ".main")
    return main.main(argv, modules)


if __name__ == "__main__":
    _sent = globals().get("PROGRAM")
    if _sent is not None:
        _modules = Modules(_sent, globals()["FOLDER"], spoken=True)
    else:
        with open(sys.argv[0], "rb") as _file:
            _modules = Modules(_file.read(), os.path.dirname(os.path.abspath(sys.argv[0])))
    sys.exit(start(_modules, sys.argv[1:]))
