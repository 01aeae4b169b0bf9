"""The report: one HTML file that shows a "trajectory" result, and what else a study made, to somebody who has
nothing else.
"""

from klray.report.page import write_report
from klray.report.sections.study_parts import Study
from klray.words.secrets import public
