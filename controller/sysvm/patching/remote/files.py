"""Every change of a file, one small function each, so that a test can stop the program before and after each of them.

All paths are real paths (under the scratch root in tests). Nothing here follows a link in the last component, and on
the way to it none but root's own: the program is root, and what it changes must not be chosen by who may make links.
Folders are held open while something in them is changed, so that nobody can exchange them for a link meanwhile.
"""

import contextlib
import ctypes
import errno
import functools
import hashlib
import os
import platform
import stat

CHUNK = 256 * 1024
NO_EXCHANGE = (errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.EOPNOTSUPP, errno.EPERM)
_RENAME_EXCHANGE = 2
_SYSCALL_IOPRIO_SET = {"x86_64": 251, "aarch64": 30, "i686": 289, "armv7l": 314, "ppc64le": 273, "s390x": 282}
_SYSCALL_RENAMEAT2 = {"x86_64": 316, "aarch64": 276, "i686": 353, "armv7l": 382, "ppc64le": 357, "s390x": 347}


NEED_SPACE = ("write", "link", "symlink", "mkdir")
"""Changes that a full disk refuses; a rename within a folder's own block and a record of the journal need none."""


class Faults(object):
    """Stops the program at the n-th change: armed by tests only (`--root` and SYSVM_FAULT=MODE:N)."""

    def __init__(self):
        self.mode = None
        self.at = 0
        self.count = 0
        self.names = []

    def arm(self, text):
        """`kill-before:N`, `kill-after:N`, `no-space:N` (once), `disk-full:N` (from then on), `count:0` (none)."""
        self.mode, at = text.split(":")
        self.at = int(at)
        self.count = 0
        self.names = []

    def before(self, name):
        if self.mode is None:
            return
        self.count += 1
        self.names.append(name)
        if self.mode == "disk-full" and self.count >= self.at and name in NEED_SPACE:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)
        if self.count != self.at:
            return
        if self.mode == "kill-before":
            os._exit(137)
        if self.mode == "no-space":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), name)

    def after(self):
        if self.mode == "kill-after" and self.count == self.at:
            os._exit(137)


FAULTS = Faults()


def point(name):
    """Marks a function as a change that a fault can hit."""

    def decorate(function):
        @functools.wraps(function)
        def counted(*args, **kwargs):
            FAULTS.before(name)
            result = function(*args, **kwargs)
            FAULTS.after()
            return result

        return counted

    return decorate


# ------------------------------------------------------------------------------------------ the way to a file


def refuse_strangers(found, path):
    """Raises OSError for a link that somebody else than root (or than this process) made."""
    if found.st_uid not in (0, os.geteuid()):
        text = "a link that belongs to user {0} lies on the way".format(found.st_uid)
        raise OSError(errno.ELOOP, text, path)


def _step(folder, name, path):
    """(descriptor, None) of the folder `name` in an open folder, or (None, text) of the link that is there."""
    flags = os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(name, flags, dir_fd=folder)
    found = os.fstat(descriptor)
    if stat.S_ISDIR(found.st_mode):
        return descriptor, None
    try:
        if not stat.S_ISLNK(found.st_mode):
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
        refuse_strangers(found, path)
        # Of the link that was looked at, whatever the name says by now.
        return None, os.readlink("", dir_fd=descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def parent(path):
    """(descriptor of the folder, name): where `path` lies, held open."""
    folder, name = os.path.split(os.path.abspath(path))
    waiting = [part for part in folder.split("/") if part]
    budget = 40
    descriptor = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        while waiting:
            following, text = _step(descriptor, waiting.pop(0), path)
            if text is not None:
                budget -= 1
                if budget < 0:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
                waiting = [piece for piece in text.split("/") if piece] + waiting
                if not text.startswith("/"):
                    continue
                following = os.open("/", os.O_PATH | os.O_CLOEXEC)
            os.close(descriptor)
            descriptor = following
        yield descriptor, name
    finally:
        os.close(descriptor)


# ------------------------------------------------------------------------------------------ single changes


@point("rename")
def rename(source, target):
    with parent(source) as (one, name), parent(target) as (other, new):
        os.rename(name, new, src_dir_fd=one, dst_dir_fd=other)


@point("exchange")
def exchange(one, other):
    """Both paths swap in one step. Raises OSError with an errno of `NO_EXCHANGE` where that is not possible."""
    _renameat2(one, other, _RENAME_EXCHANGE)


@point("link")
def link(source, target):
    with parent(source) as (one, name), parent(target) as (other, new):
        os.link(name, new, src_dir_fd=one, dst_dir_fd=other, follow_symlinks=False)


@point("symlink")
def symlink(text, path):
    with parent(path) as (folder, name):
        os.symlink(text, name, dir_fd=folder)


@point("unlink")
def unlink(path):
    with parent(path) as (folder, name):
        os.unlink(name, dir_fd=folder)


@point("rmdir")
def rmdir(path):
    with parent(path) as (folder, name):
        os.rmdir(name, dir_fd=folder)


@point("mkdir")
def mkdir(path, mode):
    with parent(path) as (folder, name):
        os.mkdir(name, mode, dir_fd=folder)
        descriptor = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
        try:
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)


@point("fsync")
def sync_folder(path):
    """The names in a folder are on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@point("write")
def write_new(path, chunks, mode):
    """A new file (never an existing one) with the bytes of `chunks`, on the disk when this returns."""
    with parent(path) as (folder, name):
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=folder)
    try:
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                view = view[os.write(descriptor, view) :]
        os.fchmod(descriptor, mode)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@point("record")
def write_at(descriptor, content, offset):
    """Overwrite bytes of an open file that has room for them, on the disk when this returns."""
    while content:
        written = os.pwrite(descriptor, content, offset)
        content = content[written:]
        offset += written
    os.fdatasync(descriptor)


@point("owner")
def set_owner(path, uid, gid):
    """Only if it differs: an unprivileged caller may always say what is already so."""
    with parent(path) as (folder, name):
        facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
        if (facts.st_uid, facts.st_gid) != (uid, gid):
            os.chown(name, uid, gid, dir_fd=folder, follow_symlinks=False)


@point("times")
def set_times(path, atime_ns, mtime_ns):
    with parent(path) as (folder, name):
        os.utime(name, ns=(atime_ns, mtime_ns), dir_fd=folder, follow_symlinks=False)


# ------------------------------------------------------------------------------------------ made of them


def unlink_if_there(path):
    if exists(path):
        unlink(path)


def make_folders(path, mode):
    """`path` and its missing parents."""
    if os.path.isdir(path):
        return
    make_folders(os.path.dirname(path), mode)
    try:
        mkdir(path, mode)
    except FileExistsError:
        return
    sync_folder(os.path.dirname(path))


def replace_with(path, content, mode):
    """Write beside and rename: at every moment `path` has its old bytes or all of the new.

    A restart finds at most a left-over `.new`, which the next call removes.
    """
    beside = path + ".new"
    unlink_if_there(beside)
    try:
        write_new(beside, [content], mode)
        rename(beside, path)
    except OSError:
        unlink_if_there(beside)
        raise
    sync_folder(os.path.dirname(path))


def remove_tree(path):
    """Remove whatever is at `path`, links not followed. Nothing there is fine: a killed call is simply repeated."""
    try:
        facts = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(facts.st_mode):
        unlink_if_there(path)
        return
    for name in sorted(os.listdir(path)):
        remove_tree(os.path.join(path, name))
    rmdir(path)


def copy_xattrs(source, target):
    """Extended attributes, ACLs included, as far as this file system and this user may."""
    try:
        names = os.listxattr(source, follow_symlinks=False)
    except OSError:
        return
    for name in names:
        try:
            value = os.getxattr(source, name, follow_symlinks=False)
            os.setxattr(target, name, value, follow_symlinks=False)
        except OSError as error:
            # security.* belongs to the label of the new file; a file system without them has none to keep
            if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.ENODATA, errno.EACCES):
                raise


def chunks_of(path):
    """The bytes of a regular file; anything else is refused."""
    with parent(path) as (folder, name):
        # A pipe would wait for a writer for ever.
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
            raise OSError(errno.EINVAL, "no plain file", path)
        while True:
            chunk = os.read(descriptor, CHUNK)
            if not chunk:
                return
            yield chunk
    finally:
        os.close(descriptor)


def read_bytes(path):
    return b"".join(chunks_of(path))


def read_text(path):
    """Text of a small file, None if it is missing or no regular file."""
    try:
        return read_bytes(path).decode("utf-8", "replace")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise


def checksum(path, algorithm):
    state = hashlib.new(algorithm)
    for chunk in chunks_of(path):
        state.update(chunk)
    return state.hexdigest()


def exists(path):
    """Raises OSError where the system does not say: a backup that cannot be read now is not gone."""
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def is_folder(path):
    """Links followed. Raises OSError as `exists`."""
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


# ------------------------------------------------------------------------------------------ facts


def facts_of(path, content=True):
    """What is at `path`, as plain data that can be written down and compared. `content`: read regular files too."""
    try:
        found = os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return {"kind": "absent"}
    facts = {"mode": stat.S_IMODE(found.st_mode), "uid": found.st_uid, "gid": found.st_gid}
    facts["mtime_ns"] = found.st_mtime_ns
    facts["size"] = found.st_size
    if stat.S_ISREG(found.st_mode):
        facts["kind"] = "file"
        if content:
            facts["sha256"] = checksum(path, "sha256")
    elif stat.S_ISLNK(found.st_mode):
        facts["kind"] = "link"
        facts["link"] = os.readlink(path)
    elif stat.S_ISDIR(found.st_mode):
        facts["kind"] = "folder"
    else:
        facts["kind"] = "other"
    return facts


def walk(top, skip=("__pycache__",)):
    """(relative path, lstat) of everything below `top`, parents before what they hold, sorted; links not followed."""
    waiting = [""]
    while waiting:
        folder = waiting.pop()
        below = []
        for name in sorted(os.listdir(os.path.join(top, folder))):
            if name in skip:
                continue
            relative = os.path.join(folder, name)
            found = os.lstat(os.path.join(top, relative))
            yield relative, found
            if stat.S_ISDIR(found.st_mode):
                below.append(relative)
        waiting.extend(reversed(below))


def held(folder):
    """Bytes that removing a folder would give back."""
    total = 0
    if os.path.isdir(folder):
        for _, found in walk(folder, ()):
            if stat.S_ISREG(found.st_mode) and found.st_nlink == 1:
                total += found.st_blocks * 512
    return total


# ------------------------------------------------------------------------------------------ renameat2

_libc = None


def _system_call(number, *arguments):
    global _libc
    if _libc is None:
        _libc = ctypes.CDLL(None, use_errno=True)
    return _libc.syscall(ctypes.c_long(number), *arguments)


def set_disk_priority(idle):
    """The idle class of the disk scheduler for this process, or back to the usual. Ignored where there is none."""
    number = _SYSCALL_IOPRIO_SET.get(platform.machine())
    if number is not None:
        _system_call(number, ctypes.c_int(1), ctypes.c_int(0), ctypes.c_int((3 << 13) if idle else 0))


def has_renameat2():
    """The kernel has the call: asked with a path that cannot exist, so that nothing is moved."""
    try:
        _renameat2("/proc/self/no-such-name", "/proc/self/no-such-other", _RENAME_EXCHANGE)
    except OSError as error:
        return error.errno not in (errno.ENOSYS, errno.EINVAL)
    return True


def _renameat2(one, other, flags):
    number = _SYSCALL_RENAMEAT2.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    with parent(one) as (first, name), parent(other) as (second, new):
        # The raw call: glibc has a function for it only since 2.28, Debian 9 has 2.24.
        result = _system_call(
            number,
            ctypes.c_int(first),
            ctypes.c_char_p(os.fsencode(name)),
            ctypes.c_int(second),
            ctypes.c_char_p(os.fsencode(new)),
            ctypes.c_uint(flags),
        )
        code = ctypes.get_errno()
    if result != 0:
        raise OSError(code, os.strerror(code), one, None, other)
