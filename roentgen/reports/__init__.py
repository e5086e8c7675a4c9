"""Images back to words: reporters, the places of what they find, and the formats in which others ask for them.

::

    from roentgen.images import read_image
    from roentgen.reports import load_reporter

    reporter = load_reporter("mini-report")
    report = reporter.report(read_image("image.png"))
    print(report.text, [(finding.label, finding.boxes) for finding in report.findings])
"""

from roentgen.reports.base import NOTHING_KNOWN, Context, Finding, Info, Report, Reporter
from roentgen.reports.boxes import Box, from_pixels, to_pixels
from roentgen.reports.cxrreportgen import (
    from_cxrreportgen,
    read_reply,
    read_request,
    to_cxrreportgen,
    write_reply,
    write_request,
)
from roentgen.reports.load import MINI_REPORT, SHIPPED, load_reporter

__all__ = [
    "MINI_REPORT",
    "NOTHING_KNOWN",
    "SHIPPED",
    "Box",
    "Context",
    "Finding",
    "Info",
    "Report",
    "Reporter",
    "from_cxrreportgen",
    "from_pixels",
    "load_reporter",
    "read_reply",
    "read_request",
    "to_cxrreportgen",
    "to_pixels",
    "write_reply",
    "write_request",
]
