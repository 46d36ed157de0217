"""The page in a real browser: no error on the console, every chart alive, read-out under the pointer."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from jepa.report import build_report
from tests.report.conftest import Page, Runs

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine (apt-get install chromium)")

# Over a copy of the page: move the pointer over the middle of the first chart, then leave it on the last one.
POINTER = """
<script>
var charts = document.querySelectorAll("svg[data-chart]");
function move(svg) {
  var box = svg.getBoundingClientRect();
  svg.dispatchEvent(new PointerEvent("pointermove", {clientX: box.left + box.width / 2, clientY: box.top + 20}));
}
move(charts[0]);
move(charts[1]);
charts[1].dispatchEvent(new PointerEvent("pointerleave"));
</script>
"""


def browse(page: Path, profile: Path, *flags: str) -> tuple[str, list[str]]:
    """The document after loading, and what the console said."""
    assert BROWSER is not None
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr",
        "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}", "--window-size=1280,2000", *flags,
        "--dump-dom", page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if "CONSOLE" in line]


@pytest.fixture(scope="module")
def page(runs: Runs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_report([runs.first, runs.second], tmp_path_factory.mktemp("browser") / "report.html")


def test_the_page_loads_without_errors_and_its_script_runs(page: Path, tmp_path: Path) -> None:
    dom, console = browse(page, tmp_path)
    assert console == []
    charts = Page(page.read_text(encoding="utf-8")).raw.count("data-chart=")
    assert charts > 10 and f'data-charts="{charts}"' in dom  # the script passed the page's own security policy
    assert dom.count("<polyline") >= charts


def test_the_pointer_reads_out_values(page: Path, tmp_path: Path) -> None:
    text = page.read_text(encoding="utf-8")
    open_page = tmp_path / "open.html"
    free = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", text)
    open_page.write_text(free.replace("</body>", POINTER + "</body>"), encoding="utf-8")
    dom, console = browse(open_page, tmp_path / "profile")
    assert console == []
    tips = re.findall(r'<div class="tip"[^>]*>([^<]*)</div>', dom)
    assert len(tips) == 1  # the second one went with the pointer
    assert re.fullmatch(r"step 6\n.*seed 3.*  0\.\d+\n.*seed 4.*  0\.\d+", tips[0])


def test_the_policy_stops_a_foreign_script(page: Path, tmp_path: Path) -> None:
    stained = tmp_path / "stained.html"
    text = page.read_text(encoding="utf-8")
    stained.write_text(text.replace("</body>", "<script>document.title='owned'</script></body>"), encoding="utf-8")
    dom, console = browse(stained, tmp_path / "profile")
    assert "<title>owned" not in dom
    assert any("Content Security Policy" in line for line in console)
