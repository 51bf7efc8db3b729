"""The environment of the dashboard's tests: the program on a free port, Chromium, and waiting."""

import base64
import importlib.util
import json
import re
import shutil
import signal
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.keys import Keys

# Timeout of every wait, in seconds. Much longer than any takes.
PATIENCE = 20

SIZES = {"wide": (1280, 900), "narrow": (375, 812)}


class Program:
    """`order-service dev` on a free port."""

    def __init__(self, path):
        self.path = path
        self.folder = tempfile.mkdtemp()
        self.start("127.0.0.1:0")

    def start(self, listen, *more):
        arguments = ["dev", "--listen", listen, "--max-order-process-duration", "3", "--request-timeout", "1s", *more]
        self.process = subprocess.Popen(
            [self.path, *arguments], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=self.folder
        )
        self.url = self.database = None
        for line in self.process.stdout:
            if found := re.match(r"\s*API\s+(http\S+)", line):
                self.url = found[1]
            if found := re.match(r"\s*data\s+(\S+),", line):
                self.database = found[1]
                break
        assert self.url and self.database, "the program did not print its address and its database"

    def ask(self, path, body=None):
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, data, headers)) as answer:
            return json.load(answer)

    def create(self, id):
        self.ask("/order", {"id": id})

    def signal(self, number):
        self.process.send_signal(number)

    def end(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.communicate(timeout=PATIENCE)

    def restart(self, *more):
        """Restarts the program at the same address with a new database."""
        self.end()
        self.start(urllib.parse.urlsplit(self.url).netloc, *more)

    def stop(self):
        self.end()
        shutil.rmtree(self.folder, ignore_errors=True)


class Page:
    """The dashboard in a browser of its own, which records requests and errors."""

    def __init__(self, origin, screenshots):
        self.origin = origin
        self.screenshots = Path(screenshots)
        shutil.rmtree(self.screenshots, ignore_errors=True)
        self.screenshots.mkdir(parents=True)
        self.profile = tempfile.mkdtemp()
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for argument in [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--disable-dev-shm-usage",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--hide-scrollbars",
            f"--user-data-dir={self.profile}",
        ]:
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.browser = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
        # Discard requests that the browser sends before the first page.
        self.browser.get("about:blank")
        self.requests()
        self.emulate("wide", "light")
        # axe comes in a package for another library, of which only this file is used.
        package = importlib.util.find_spec("axe_playwright_python").submodule_search_locations[0]
        self.axe = (Path(package) / "axe.min.js").read_text()

    def emulate(self, size, scheme):
        width, height = SIZES[size]
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)

    def open(self, path="/"):
        self.browser.get(self.origin + path)
        self.until("the page is there", lambda: self.all(".signs") and self.all("#list-title"))

    def run(self, script, *arguments):
        return self.browser.execute_script(script, *arguments)

    def all(self, selector):
        return self.browser.find_elements("css selector", selector)

    def one(self, selector):
        found = self.all(selector)
        assert len(found) == 1, f"{len(found)} of {selector}"
        return found[0]

    def text(self, selector="main"):
        """Returns the visible text, read at once because the page may replace it at any time."""
        return self.run("return document.querySelector(arguments[0])?.innerText ?? ''", selector)

    def click(self, selector, words=None):
        """Clicks on the element with this text once it exists."""

        def found():
            for element in self.all(selector):
                if words is None or re.search(words, element.text):
                    return element
            return None

        self.until(f"{words or selector} can be clicked", found).click()

    def rows(self):
        """Returns the id, status and note of each order in the list."""
        return self.run(
            "return [...document.querySelectorAll('.orders tbody tr')].map(row => "
            "[row.querySelector('bdi').textContent, row.cells[1].innerText.trim(),"
            " row.querySelector('.row-note')?.textContent ?? ''])"
        )

    def press(self, *keys):
        webdriver.ActionChains(self.browser).send_keys(*keys).perform()

    def tab_to(self, selector):
        """Presses Tab until a matching element has the focus."""
        for _ in range(60):
            if self.run("return document.activeElement.matches(arguments[0])", selector):
                return
            self.press(Keys.TAB)
        raise AssertionError(f"Tab does not lead to {selector}")

    def address(self):
        url = urllib.parse.urlsplit(self.browser.current_url)
        return url.path + (f"?{url.query}" if url.query else "")

    def until(self, what, condition):
        """Polls a condition until it returns a true value, and returns that."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                if found := condition():
                    return found
            except Exception as error:  # noqa: BLE001 -- the page may be replaced while it is read
                if type(error).__name__ not in ("StaleElementReferenceException", "ElementClickInterceptedException"):
                    raise
            if time.monotonic() > deadline:
                self.screenshot("failed")
                raise AssertionError(f"{what}: timed out. {self.text()}")
            time.sleep(0.05)

    def screenshot(self, name):
        taken = self.browser.execute_cdp_cmd("Page.captureScreenshot", {"captureBeyondViewport": True})
        (self.screenshots / f"{name}.png").write_bytes(base64.b64decode(taken["data"]))

    def check_everywhere(self, name):
        """Checks the page with axe, in both schemes and widths, and takes screenshots."""
        self.run(self.axe)
        for size in SIZES:
            for scheme in ("light", "dark"):
                self.emulate(size, scheme)
                found = self.browser.execute_async_script("axe.run(document).then(arguments[0])")
                broken = [
                    (rule["id"], node["target"], node["failureSummary"])
                    for rule in found["violations"]
                    for node in rule["nodes"]
                ]
                assert not broken, f"{name}, {size}, {scheme}: {broken}"
                assert len(found["passes"]) > 20, "axe has checked the page"
                width = self.run("return document.documentElement.scrollWidth")
                wrong = [word for word in ("NaN", "undefined", "null", "[object") if word in self.text("body")]
                assert not wrong, f"{name}: {wrong}"
                assert width <= SIZES[size][0], f"{name}, {size}: it is {width} wide"
                self.screenshot(f"{name}-{size}-{scheme}")
        self.emulate("wide", "light")

    def complaints(self):
        """Returns the browser's warnings and errors since the last call."""
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] != "INFO"]

    def requests(self):
        """Returns the URL of every request since the last call."""
        messages = (json.loads(entry["message"])["message"] for entry in self.browser.get_log("performance"))
        return [of["params"]["request"]["url"] for of in messages if of["method"] == "Network.requestWillBeSent"]

    def close(self):
        self.browser.quit()
        shutil.rmtree(self.profile, ignore_errors=True)
