"""One self-contained HTML page that says what a run did and how good it is."""

from jepa.report.build import build_report, summaries, summary

__all__ = ["build_report", "summaries", "summary"]
