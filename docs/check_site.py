"""Look at every page of the built site in a browser: ``make check-docs``.

Each page is loaded in a window of each width. A page fails if content is cut or sticks out, if what
scrolls sideways has no scroll bar, if an equation or a picture does not show, or if the browser
reports an error. The browser is a Chromium; it is controlled by DevTools messages over a pipe.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

WIDTHS = (1440, 1024, 400)
HEIGHT = 900
SECONDS = 60  # for an answer of the browser
NAMES = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "msedge",
)
MACOS = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"

# Starts a program that reads messages from the file of number 3, and writes them to that of 4.
START = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""

# Returns a list of what is wrong with the page.
LOOK = r"""
(async () => {
  if (window.MathJax?.startup?.promise) await window.MathJax.startup.promise;
  await document.fonts.ready;
  // Equations for screen readers are invisible, and larger than the ones that are seen.
  for (const x of document.querySelectorAll("mjx-assistive-mml"))
    x.style.setProperty("display", "none", "important");
  await new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)));
  const faults = [];
  const page = document.querySelector("article") ?? document.body;
  const named = x => {
    const kind = x.tagName.toLowerCase() + [...x.classList].map(name => "." + name).join("");
    const text = x.textContent.trim().replace(/\s+/g, " ").slice(0, 60);
    return `${kind} “${text}”`;
  };
  const scrolls = x => ["auto", "scroll"].includes(getComputedStyle(x).overflowX);
  const scrolled = x => {
    while ((x = x.parentElement) && x !== page.parentElement) if (scrolls(x)) return true;
    return false;
  };
  const bounds = page.getBoundingClientRect();
  const margin = 12;  // by which the theme lets titles stick out
  const right = Math.min(bounds.right + margin, document.documentElement.clientWidth);
  const out = new Set();
  for (const x of page.querySelectorAll("*")) {
    const box = x.getBoundingClientRect();
    const inner = x.closest("mjx-container") ?? x.closest("svg");
    if (!box.width || !box.height || (inner && inner !== x)) continue;
    if (x.closest(".visually-hidden")) continue;
    const style = getComputedStyle(x);
    if (x.clientWidth && x.scrollWidth > x.clientWidth + 1) {
      if (["hidden", "clip"].includes(style.overflowX)) faults.push(`cut: ${named(x)}`);
      const borders = parseFloat(style.borderTopWidth) + parseFloat(style.borderBottomWidth);
      if (scrolls(x) && x.offsetHeight - x.clientHeight - borders < 1)
        faults.push(`scrolls without a scroll bar: ${named(x)}`);
    }
    if (x.clientHeight && x.scrollHeight > x.clientHeight + 1)
      if (["hidden", "clip"].includes(style.overflowY)) faults.push(`cut below: ${named(x)}`);
    if ((box.right > right + 1 || box.left < bounds.left - 2 * margin) && !scrolled(x)) {
      if (!out.has(x.parentElement)) faults.push(`sticks out: ${named(x)}`);
      out.add(x);
    }
    if (x.tagName === "IMG" && !(x.complete && x.naturalWidth))
      faults.push(`no picture: ${x.getAttribute("src")}`);
  }
  for (const x of page.querySelectorAll(".math"))
    if (!x.querySelector("mjx-container")) faults.push(`no equation: ${named(x)}`);
  for (const x of page.querySelectorAll("mjx-merror, [data-mjx-error]"))
    faults.push(`error in an equation: ${x.getAttribute("data-mjx-error") ?? named(x)}`);
  const texts = document.createTreeWalker(page, NodeFilter.SHOW_TEXT);
  while (texts.nextNode()) {
    const x = texts.currentNode;
    if (/\$\$|\\\(|\\\[|TypeAliasForwardRef/.test(x.data) && !x.parentElement.closest("pre, code"))
      faults.push(`raw source: “${x.data.trim().slice(0, 60)}”`);
  }
  return faults;
})()
"""


class Browser:
    """A browser without a window, and one page in it."""

    def __init__(self, command: str, profile: str):
        (to_browser, self.to), (self.of, of_browser) = os.pipe(), os.pipe()
        options = ["--headless", "--remote-debugging-pipe", "--disable-gpu", "--no-first-run"]
        options += [f"--user-data-dir={profile}", "--allow-file-access-from-files", "about:blank"]
        if hasattr(os, "geteuid") and os.geteuid() == 0:  # as in a container
            options.insert(0, "--no-sandbox")
        ends = [fcntl.fcntl(x, fcntl.F_DUPFD, 10) for x in (to_browser, of_browser)]
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, *map(str, ends), command, *options],
            pass_fds=ends,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for end in (to_browser, of_browser, *ends):
            os.close(end)
        self.numbers, self.left, self.events = itertools.count(1), b"", list[dict[str, Any]]()
        self.session: str | None = None
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        attached = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.ask(f"{domain}.enable")

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait()
        os.close(self.to)
        os.close(self.of)

    def messages(self, seconds: float) -> Iterator[dict[str, Any]]:
        """What the browser sends."""
        until = time.monotonic() + seconds
        while True:
            while b"\0" in self.left:
                message, self.left = self.left.split(b"\0", 1)
                yield json.loads(message)
            if not select.select([self.of], [], [], max(0, until - time.monotonic()))[0]:
                raise TimeoutError(f"the browser did not answer within {seconds} s")
            more = os.read(self.of, 1 << 16)
            if not more:
                raise ConnectionError("the browser ended")
            self.left += more

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Call a method of the DevTools protocol; keep the events that come before its result."""
        number = next(self.numbers)
        call = {"id": number, "method": method, "params": params}
        if self.session is not None:
            call["sessionId"] = self.session
        os.write(self.to, json.dumps(call).encode() + b"\0")
        for message in self.messages(SECONDS):
            if message.get("id") == number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                return message["result"]
            self.events.append(message)
        raise AssertionError("unreachable")

    def open(self, url: str, width: int) -> None:
        """Load a page in a window of this width."""
        size = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        self.events.clear()
        self.ask("Page.navigate", url=url)
        if not any(x["method"] == "Page.loadEventFired" for x in self.events):
            for message in self.messages(SECONDS):
                self.events.append(message)
                if message.get("method") == "Page.loadEventFired":
                    break

    def look(self) -> list[str]:
        """What is wrong with the open page."""
        found = self.ask("Runtime.evaluate", expression=LOOK, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(json.dumps(found["exceptionDetails"]))
        return [*found["result"]["value"], *self.reported()]

    def reported(self) -> Iterator[str]:
        """The errors that the browser has reported since the page was opened."""
        for event in self.events:
            about = event.get("params", {})
            if event["method"] == "Runtime.exceptionThrown":
                details = about["exceptionDetails"]
                yield f"exception: {details.get('exception', details).get('description', details)}"
            elif event["method"] == "Runtime.consoleAPICalled" and about["type"] == "error":
                said = (str(x.get("value", x.get("description"))) for x in about["args"])
                yield f"console: {' '.join(said)}"
            elif event["method"] == "Log.entryAdded" and about["entry"]["level"] == "error":
                entry = about["entry"]
                yield f"error: {entry['text']} {entry.get('url', '')}"

    def picture(self, path: Path) -> None:
        """Save what the window shows."""
        shot = self.ask("Page.captureScreenshot", format="png")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(base64.b64decode(shot["data"]))


def find_browser() -> str | None:
    """The browser that the environment variable CHROME names, or one on the path."""
    if named := os.environ.get("CHROME"):
        return shutil.which(named)
    found = filter(None, map(shutil.which, (*NAMES, MACOS)))
    return next(found, None)


def pages(site: Path, only: str) -> list[Path]:
    """The site's pages."""
    found = sorted(site.rglob("*.html"))
    names = [x.relative_to(site) for x in found]
    return [x for x in names if only in x.as_posix() and not x.as_posix().startswith("_")]


def check(browser: Browser, site: Path, names: list[Path], pictures: Path | None) -> int:
    """Print what is wrong with the pages; return the number of faults."""
    faults = 0
    for done, name in enumerate(names, 1):
        if sys.stdout.isatty():
            print(f"\r{done} of {len(names)}: {name.as_posix():<60}", end="", flush=True)
        for width in WIDTHS:
            browser.open((site / name).as_uri(), width)
            for fault in browser.look():
                faults += 1
                print(f"{name.as_posix()}, {width} px: {fault}")
            if pictures is not None:
                stem = name.with_suffix("").as_posix().replace("/", "-")
                browser.picture(pictures / f"{stem}-{width}.png")
    if sys.stdout.isatty():
        print("\r", end="")
    return faults


def main(given: list[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="docs/check_site.py", description=__doc__)
    parser.add_argument("site", nargs="?", type=Path, default=Path("out/docs"))
    parser.add_argument("--only", default="", help="only pages whose names contain this")
    parser.add_argument("--pictures", type=Path, help="a folder for a picture of every page")
    options = parser.parse_args(given)
    command = find_browser()
    if command is None:
        named = os.environ.get("CHROME")
        print(
            f"CHROME={named} is no program."
            if named
            else f"Found no browser ({', '.join(NAMES)}).",
            "Install Chromium or Chrome, or name it: make check-docs CHROME=/path/to/chrome",
        )
        return 2
    names = pages(options.site, options.only)
    if not names:
        print(f"Found no page in {options.site}; make docs builds the site.")
        return 2
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        browser = Browser(command, profile)
        try:
            faults = check(browser, options.site.resolve(), names, options.pictures)
        finally:
            browser.close()
    widths = ", ".join(map(str, WIDTHS))
    print(f"{len(names)} pages at {widths} px: {faults or 'no'} faults.")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
