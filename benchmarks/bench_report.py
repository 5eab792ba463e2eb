"""The page of a large run, in a real browser.

The recipe `digits` is run by the real stages with 10,000 replay images of nine classes (and its 1,350 generated ones),
its page is written by `replaygen report`, and Chromium opens the file: wide and narrow, light and dark.

Figures:
    console_errors: errors and warnings on the console, and exceptions. external_requests: for anything but the file.
    axe_serious: serious and critical findings of axe, all folds open, a confusion's window open. All three are summed
        over the four ways to look.
    page_megabytes_10k: the file, 10^6 bytes.
    interactive_seconds: from asking for the file until a click on a confusion has its window drawn (median of 5, each
        in a new context at 1280 pixels).
    replay_images: of the sets that the page shows; report_seconds: wall time of `replaygen report`.

Screenshots are left in `reports/bench-report/`.
"""

from __future__ import annotations

import re
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

from common import QUICK, REPOSITORY, fresh_folder, replaygen, settings, write

EACH = 12 if QUICK else 1112
"""Replay images asked for of each of nine classes."""

TINY: dict[str, Any] = {
    "data.options.train": 120, "data.options.val": 60, "replay.gan.count": 8, "train.fit.iterations": 6,
    "train.fit.warmup": 1, "train.base.iterations": 60, "train.base.warmup": 10, "method.joint.iterations": 80,
    "method.joint.warmup": 10,
}  # fmt: skip
CHANGES: dict[str, Any] = {
    **(TINY if QUICK else {}), "data.options.photos": EACH + 8, "replay.photos.count": EACH,
}  # fmt: skip
SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
SHOTS = REPOSITORY / "reports" / "bench-report"
UNFOLD = "document.querySelectorAll('details').forEach(one => { one.open = true })"
DRAWN = "() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))"


def main() -> None:
    """Measure and write `report.json`."""
    chromium = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if chromium is None:
        print("not run: it needs a chromium on the PATH")
        sys.exit(0)
    with fresh_folder() as folder:
        page = folder / "page.html"
        how = ["digits", "--cache", str(folder / "store"), *settings({**CHANGES, "data.path": str(folder / "scenes")})]
        replaygen("run", *how, "--report", str(folder / "first.html"), "--json")
        began = time.perf_counter()
        replaygen("report", *how, "--out", str(page))
        wrote = time.perf_counter() - began
        found = {**looked_at(chromium, page), "replay_images": replay_in(page), "report_seconds": round(wrote, 1)}
    write("report", found)


def replay_in(page: Path) -> int:
    """The replay images that the sheets of a page stand for."""
    return sum(int(made) for made in re.findall(r"<b>(\d+)</b> of \d+ made", page.read_text(encoding="utf-8")))


def looked_at(chromium: str, page: Path) -> dict[str, Any]:
    """The figures that a browser gives."""
    from playwright.sync_api import sync_playwright

    SHOTS.mkdir(parents=True, exist_ok=True)
    told = {"console_errors": 0, "external_requests": 0, "axe_serious": 0}
    with sync_playwright() as started:
        browser = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for size in SIZES:
            for scheme in ("light", "dark"):
                for name, count in look(browser, page, size, scheme).items():
                    told[name] += count
        ready = [interactive(browser, page) for _ in range(5)]
        browser.close()
    return {
        **told, "page_megabytes_10k": round(page.stat().st_size / 1e6, 2),
        "interactive_seconds": round(statistics.median(ready), 2),
    }  # fmt: skip


def look(browser: Any, path: Path, size: str, scheme: str) -> dict[str, int]:
    """What one way to look finds; leaves screenshots of the page, unfolded, and of a confusion's window."""
    from axe_playwright_python.sync_playwright import Axe

    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height}, color_scheme=scheme)
    page = context.new_page()
    errors: list[str] = []
    outside: list[str] = []
    page.on("console", lambda one: errors.append(one.text) if one.type in ("error", "warning") else None)
    page.on("pageerror", lambda one: errors.append(str(one)))
    page.on("request", lambda one: None if one.url.startswith((path.as_uri(), "data:")) else outside.append(one.url))
    page.goto(path.as_uri())
    page.screenshot(path=SHOTS / f"{size}-{scheme}.png", full_page=True)
    page.evaluate(UNFOLD)
    serious = found_by(Axe(), page)
    page.locator("a[data-opens]").first.click()
    page.screenshot(path=SHOTS / f"{size}-{scheme}-window.png")
    serious |= found_by(Axe(), page)
    context.close()
    for line in (*errors, *outside, *sorted(serious)):
        print(f"{size}, {scheme}: {line}", file=sys.stderr)
    return {"console_errors": len(errors), "external_requests": len(outside), "axe_serious": len(serious)}


def found_by(axe: Any, page: Any) -> set[str]:
    """The ids of axe's serious and critical findings."""
    found = axe.run(page).response["violations"]
    return {one["id"] for one in found if one["impact"] in ("serious", "critical")}


def interactive(browser: Any, path: Path) -> float:
    """Seconds from asking for the page until it has answered a click."""
    width, height = SIZES["desktop"]
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    began = time.perf_counter()
    page.goto(path.as_uri(), wait_until="commit")
    page.locator("#rg-window").wait_for(state="attached")
    page.evaluate("() => new Promise(done => { document.readyState === 'loading'"
                  " ? addEventListener('DOMContentLoaded', done) : done() })")  # fmt: skip
    page.locator("a[data-opens]").first.click()
    page.locator("#rg-window").wait_for(state="visible")
    page.evaluate(DRAWN)
    seconds = time.perf_counter() - began
    context.close()
    return seconds


if __name__ == "__main__":
    main()
