"""One self-contained HTML page that says what a run did and how good it is, and its pictures as files."""

from jepa.report.build import build_report, summaries, summary
from jepa.report.sheets import save_pictures

__all__ = ["build_report", "save_pictures", "summaries", "summary"]
