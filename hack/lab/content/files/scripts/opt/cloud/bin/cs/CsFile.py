"""Configuration files that are written only when their text changes."""

import os


class ConfigFile:
    """One file; write() says whether the text was another one."""

    def __init__(self, path):
        self.path = path

    def text(self):
        try:
            with open(self.path, encoding="utf-8") as source:
                return source.read()
        except FileNotFoundError:
            return ""

    def exists(self):
        return os.path.exists(self.path)

    def write(self, text, mode=0o644):
        if self.exists() and self.text() == text:
            return False
        os.makedirs(os.path.dirname(self.path), exist_ok=True)
        with open(self.path, "w", encoding="utf-8") as target:
            target.write(text)
        os.chmod(self.path, mode)
        return True

    def remove(self):
        if self.exists():
            os.remove(self.path)
            return True
        return False
