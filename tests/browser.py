"""A headless Chromium, driven over a pipe in its own protocol: no driver and no port."""

import json
import os
import shutil
import subprocess
import tempfile
import time

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)


class Page:
    """A page that is open; ``complaints`` are errors and warnings of its console, ``fetched`` what it asked for."""

    def __init__(self, url):
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        (theirs, self.write), (self.read, ours) = os.pipe(), os.pipe()
        os.set_blocking(self.read, False)
        self.process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{theirs} 4>&{ours}', "bash", PROGRAM]
            + ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking"]
            + ["--remote-debugging-pipe", f"--user-data-dir={self.profile.name}"],
            pass_fds=[theirs, ours],
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs), os.close(ours)
        self.number, self.rest, self.session, self.complaints, self.fetched, self.loaded = 0, b"", None, [], [], False
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for part in ("Runtime", "Log", "Page", "Network"):
            self.ask(f"{part}.enable")
        self.ask("Page.navigate", url=url)
        self.until(lambda: self.loaded)

    def ask(self, method, **params):
        self.number += 1
        message = {"id": self.number, "method": method, "params": params} | ({"sessionId": self.session} if self.session else {})
        os.write(self.write, json.dumps(message).encode() + b"\0")
        number, found = self.number, []
        self.until(lambda: found, lambda said: said.get("id") == number and found.append(said))
        assert "result" in found[0], found[0]
        return found[0]["result"]

    def until(self, done, see=lambda said: None):
        end = time.monotonic() + 60
        while not done():
            assert time.monotonic() < end, "the browser does not answer"
            try:
                self.rest += os.read(self.read, 1 << 20)
            except BlockingIOError:
                time.sleep(0.01)
            *whole, self.rest = self.rest.split(b"\0")
            for said in map(json.loads, whole):
                self.note(said)
                see(said)

    def note(self, said):
        method, params = said.get("method"), said.get("params", {})
        if method in ("Runtime.exceptionThrown", "Log.entryAdded"):
            self.complaints.append(params)
        if method == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.complaints.append(params)
        if method == "Network.requestWillBeSent":
            self.fetched.append(params["request"]["url"])
        self.loaded = self.loaded or (method == "Page.loadEventFired" and self.session is not None)

    def value(self, expression):
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        os.close(self.read), os.close(self.write)
        self.profile.cleanup()
