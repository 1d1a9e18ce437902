"""The machine: where its paths lie and how its commands are run. With `--root` a scratch folder plays the machine."""

import errno
import os
import signal
import subprocess
import time

from . import files

OUTPUT_LIMIT = 2048
TRANSIENT_FOLDERS = ("tmpfs", "ramfs", "devtmpfs", "proc", "sysfs")


class Outcome(object):
    """How a command ended: `code` None means it was stopped at its timeout."""

    def __init__(self, argv, code, output):
        self.argv = argv
        self.code = code
        self.output = output

    @property
    def ok(self):
        return self.code == 0

    def sentence(self):
        how = "did not end in time" if self.code is None else "ended with {0}".format(self.code)
        said = self.output.strip()
        return "{0} {1}{2}".format(" ".join(self.argv), how, ": " + tail(said) if said else "")


def tail(text, limit=OUTPUT_LIMIT):
    """The end of a text: that is where programs say why they gave up."""
    text = text.strip()
    return text if len(text) <= limit else "..." + text[-limit:]


class Host(object):
    def __init__(self, root="/"):
        self.root = os.path.abspath(root)
        self.scratch = self.root != "/"

    def at(self, path):
        """Real path of a path on the VM, links in its folders resolved inside the root, the last component not."""
        folder, name = os.path.split(path)
        return os.path.join(self.resolve(folder), name) if name else self.resolve(folder)

    def resolve(self, path):
        """Real path with every link resolved as the VM would see it; what is missing is taken as it is written.

        Raises OSError at a link that does not belong to root: where it leads is not for its owner to choose.
        """
        done = "/"
        waiting = [part for part in path.split("/") if part]
        budget = 40
        while waiting:
            part = waiting.pop(0)
            if part in (".", ""):
                continue
            if part == "..":
                done = os.path.dirname(done)
                continue
            there = os.path.join(done, part)
            real = self.root + there if self.scratch else there
            if os.path.islink(real) and budget:
                budget -= 1
                files.refuse_strangers(os.lstat(real), done.rstrip("/") + "/" + part)
                text = os.readlink(real)
                if text.startswith("/"):
                    done = "/"
                waiting = [piece for piece in text.split("/") if piece] + waiting
                continue
            done = there
        return (self.root + done).rstrip("/") or "/" if self.scratch else done

    def name(self, real):
        """The path on the VM of a real path, for people."""
        return real[len(self.root) :] or "/" if self.scratch and real.startswith(self.root) else real

    # -------------------------------------------------------------------------------------- commands

    @staticmethod
    def environment():
        return dict(os.environ, LC_ALL="C", SYSTEMD_PAGER="", SYSTEMD_COLORS="0")

    def run(self, argv, timeout, folder="/", merged=True):
        """Run a command without a shell, its output bounded; at the timeout its whole process group is stopped."""
        try:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT if merged else subprocess.DEVNULL,
                cwd=folder,
                env=self.environment(),
                start_new_session=True,
            )
        except OSError as error:
            return Outcome(argv, 127, "{0}: {1}".format(argv[0], error.strerror))
        try:
            output, _ = process.communicate(timeout=max(timeout, 0.1))
            return Outcome(argv, process.returncode, output.decode("utf-8", "replace"))
        except subprocess.TimeoutExpired:
            # Its own session, so this group holds nothing but what it started.
            try:
                os.killpg(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
            try:
                output, _ = process.communicate(timeout=2)
            except subprocess.TimeoutExpired:
                # A grandchild left the group and keeps the pipe open; what it says is of no use any more.
                process.stdout.close()
                output = b""
            return Outcome(argv, None, output.decode("utf-8", "replace"))

    def has_program(self, name):
        folders = os.environ.get("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").split(":")
        return any(os.access(os.path.join(folder, name), os.X_OK) for folder in folders if folder)

    def filters_packets(self):
        """Whether nft may be asked; a scratch root has no network of its own."""
        return not self.scratch and self.has_program("nft")

    # -------------------------------------------------------------------------------------- file systems

    def mount_of(self, real):
        """(mount point, type) that a real path, or its nearest existing parent, lies on."""
        while not os.path.exists(real):
            real = os.path.dirname(real)
        real = os.path.realpath(real)
        best = ("/", "unknown")
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
            for line in table:
                words = line.split()
                point = words[4].replace("\\040", " ")
                inside = real == point or real.startswith(point.rstrip("/") + "/")
                if inside and len(point) >= len(best[0]):
                    best = (point, words[words.index("-") + 1])
        return best

    def space(self, real):
        """(bytes, inodes) available to root's writes at `real`; inodes -1 where they are not counted."""
        while not os.path.exists(real):
            real = os.path.dirname(real)
        facts = os.statvfs(real)
        return facts.f_bavail * facts.f_frsize, (facts.f_favail if facts.f_files else -1)

    # -------------------------------------------------------------------------------------- facts

    def text(self, path):
        """Text of a small file of the VM, None if it is missing."""
        try:
            with open(self.resolve(path), "rb") as file:
                return file.read(1024 * 1024).decode("utf-8", "replace")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                return None
            raise

    def proc(self, path):
        """A file of /proc, None if it is missing or its process has gone; a scratch root brings its own."""
        try:
            with open((self.root if self.scratch else "") + "/proc/" + path, "rb") as file:
                return file.read().decode("utf-8", "replace")
        except OSError:
            return None

    def memory_available(self):
        for line in (self.proc("meminfo") or "").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return 0

    def wait(self, seconds):
        time.sleep(seconds)


def cmdline_words(host):
    """The boot arguments that CloudStack gave this VM, as a dictionary (CloudStack 4.21 common.sh parse_cmd_line)."""
    words = {}
    for word in (host.text("/var/cache/cloud/cmdline") or "").split():
        key, separator, value = word.partition("=")
        if separator:
            words[key] = value
    return words
