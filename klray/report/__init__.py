"""The report: one HTML file that shows a "trajectory" result, and what else a study made, to somebody who has
nothing else.
"""

from __future__ import annotations

from klray.report.page import write_report
from klray.report.redaction import public
from klray.report.sections.study_parts import Study

__all__ = ["Study", "public", "write_report"]
