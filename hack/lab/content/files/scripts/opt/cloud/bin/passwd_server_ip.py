#!/usr/bin/python
"""Hands a tenant its new password once: port 8080 on the addresses of the argument (address[,address])."""

import hmac
import http.server
import os
import secrets
import socketserver
import sys
import threading
import urllib.parse

PORT = 8080
TOKEN_FILE = "/tmp/passwdsrvrtoken"
STORE = "/var/cache/cloud/passwords-%s"
lock = threading.Lock()


def load(path):
    try:
        with open(path, encoding="utf-8") as source:
            return dict(line.strip().split("=", 1) for line in source if "=" in line)
    except FileNotFoundError:
        return {}


def save(path, passwords):
    with open(path + ".part", "w", encoding="utf-8") as target:
        target.writelines("%s=%s\n" % item for item in passwords.items())
    os.chmod(path + ".part", 0o600)
    os.replace(path + ".part", path)


class Handler(http.server.BaseHTTPRequestHandler):
    store = ""
    token = ""

    def _answer(self, text):
        body = text.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        client = self.client_address[0]
        with lock:
            passwords = load(self.store)
            request = self.headers.get("DomU_Request")
            if request == "send_my_password":
                self._answer(passwords.get(client, ""))
            elif request == "saved_password":
                if passwords.pop(client, None) is not None:
                    save(self.store, passwords)
                self._answer("saved_password")
            else:
                self._answer("bad_request")

    def do_POST(self):
        length = min(int(self.headers.get("Content-Length", 0)), 4096)
        form = dict(urllib.parse.parse_qsl(self.rfile.read(length).decode()))
        if not hmac.compare_digest(form.get("token", ""), self.token):
            self.send_error(403)
            return
        with lock:
            passwords = load(self.store)
            passwords[form["ip"]] = form["password"]
            save(self.store, passwords)
        self._answer("saved")

    def log_message(self, *arguments):
        pass


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True
    allow_reuse_address = True


def main(argument):
    addresses = argument.split(",")
    token = secrets.token_hex(16)
    if os.path.exists(TOKEN_FILE):
        with open(TOKEN_FILE, encoding="ascii") as source:
            token = source.read().strip() or token
    descriptor = os.open(TOKEN_FILE, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as target:
        target.write(token)
    Handler.token, Handler.store = token, STORE % addresses[-1]
    servers = [Server((address, PORT), Handler) for address in addresses]
    for server in servers[1:]:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    servers[0].serve_forever()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: passwd_server_ip.py address[,address]")
    main(sys.argv[1])
