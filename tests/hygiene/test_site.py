"""The guide builds as a site: every page is in its navigation, every link and anchor leads somewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.hygiene.tree import ROOT


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    env = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.relative_to(tmp_path / "site").as_posix() for path in (tmp_path / "site").rglob("*.html")}
    assert {"index.html", "troubleshooting.html", "reference/recipes.html", "methods/ijepa.html"} <= pages
    home = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    assert 'src="http' not in home and "fonts.googleapis" not in home  # nothing is fetched from elsewhere
