"""A headless Chromium for tests, driven through chromedriver by the WebDriver protocol (https://www.w3.org/TR/webdriver/).

Not selenium: the protocol is a handful of HTTP requests, and selenium's manager would look for a driver on the network.
"""

import base64
import http.client
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Self

PROGRAMS = [shutil.which("chromedriver"), shutil.which("chromium") or shutil.which("google-chrome")]
"""The driver and the browser; None for what is not installed."""

_ARGUMENTS = [
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
    *("--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost",  # no name resolves: nothing can be fetched
]


class Browser:
    """One browser with a profile of its own; a context manager that leaves no process behind.

    Args:
        profile: an empty folder.
        width: of the page, in CSS pixels, as on a phone of that width.
        dark: whether the reader prefers dark pages.
    """

    def __init__(self, profile: Path, width: int = 1280, dark: bool = False) -> None:
        self.profile, self.width, self.dark = profile, width, dark

    def __enter__(self) -> Self:
        driver, browser = PROGRAMS
        assert driver
        assert browser
        # Port 0: the driver takes a free one and names it in its first lines.
        command = [driver, "--port=0"]
        self._driver = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert self._driver.stdout
            started = (re.search(r"on port (\d+)\.", line) for line in self._driver.stdout)
            port = next(match.group(1) for match in started if match)
            self._port, self._session = int(port), ""
            options = {"binary": browser, "args": [*_ARGUMENTS, f"--user-data-dir={self.profile}"]}
            wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
            session = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
            self._session = f"/session/{session['sessionId']}"
            metrics = {"width": self.width, "height": 900, "deviceScaleFactor": 1, "mobile": self.width < 700}
            self.devtools("Emulation.setDeviceMetricsOverride", **metrics)
            scheme = {"name": "prefers-color-scheme", "value": "dark" if self.dark else "light"}
            self.devtools("Emulation.setEmulatedMedia", features=[scheme])
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._ask("DELETE", "")
        finally:
            self._stop()

    def _stop(self) -> None:
        self._driver.terminate()
        self._driver.wait(timeout=20)
        if self._driver.stdout:
            self._driver.stdout.close()

    def open(self, address: str) -> None:
        """Opens a page and waits until it and its pictures are loaded."""
        self._ask("POST", "/url", {"url": address})

    def run(self, script: str) -> Any:
        """What a JavaScript function body returns in the page."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": []})

    def choose(self, selector: str, file: Path) -> None:
        """Chooses a file in an `<input type="file">`, as a person does in the dialog."""
        found = self._ask("POST", "/element", {"using": "css selector", "value": selector})
        self._ask("POST", f"/element/{next(iter(found.values()))}/value", {"text": str(file)})

    def wait(self, script: str) -> Any:
        """What a JavaScript function body returns as soon as that is true of it; ten seconds at most."""
        again = f"""const done = arguments[0], until = Date.now() + 10_000, ask = () => {{ {script} }};
        (function look() {{
          const found = ask();
          if (found || Date.now() > until) done(found); else setTimeout(look, 20);
        }})();"""
        found = self._ask("POST", "/execute/async", {"script": again, "args": []})
        assert found, f"never true: {script}"
        return found

    def console(self) -> list[str]:
        """Warnings and errors of the console since the last call, refused and failed loads among them."""
        entries = self._ask("POST", "/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries if entry["level"] in ("WARNING", "SEVERE")]

    def screenshot(self) -> bytes:
        """The whole page, from top to bottom, as PNG."""
        height = self.run("return document.documentElement.scrollHeight")
        clip = {"x": 0, "y": 0, "width": self.width, "height": height, "scale": 1}
        taken = self.devtools("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        return base64.b64decode(taken["data"])

    def devtools(self, command: str, **parameters: Any) -> Any:
        """Answer of a command of Chromium's developer tools."""
        return self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": parameters})

    def _ask(self, method: str, path: str, body: Any = None) -> Any:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request(method, self._session + path, None if body is None else json.dumps(body))
            answer = json.load(connection.getresponse())["value"]
        finally:
            connection.close()
        if isinstance(answer, dict) and "error" in answer:
            raise AssertionError(f"{path}: {answer['error']}: {answer.get('message')}")
        return answer
