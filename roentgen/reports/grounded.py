"""Places for any reporter: a grounding head looks for what another reporter has said."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from roentgen.reports.base import NOTHING_KNOWN, Context, Finding, Image, Info, Report, Reporter
from roentgen.reports.grounding import boxes_of, on_side
from roentgen.reports.labels import LabelsReporter


class GroundedReporter:
    """``reporter`` with the boxes of ``grounder``'s maps for findings that it names and does not place."""

    def __init__(self, reporter: Reporter, grounder: LabelsReporter) -> None:
        self.reporter = reporter
        self.grounder = grounder

    @property
    def info(self) -> Info:
        """That of the reporter, with what the grounding head places."""
        theirs = self.grounder.info
        return dataclasses.replace(
            self.reporter.info, name=f"{self.reporter.info.name} with places by {theirs.name}", placed=theirs.placed
        )

    def report(self, image: Image, context: Context = NOTHING_KNOWN) -> Report:
        """See ``Reporter``."""
        return self.report_many([image], [context])[0]

    def report_many(self, images: Sequence[Image], contexts: Sequence[Context] = ()) -> list[Report]:
        """See ``Reporter``."""
        reports = self.reporter.report_many(images, contexts)
        if not reports:
            return []
        seen = self.grounder.predict(images)
        columns = {name: column for column, name in enumerate(self.grounder.rules.findings)}

        def placed(finding: Finding, row: int) -> Finding:
            if not finding.present or finding.boxes or finding.label not in columns:
                return finding
            places = seen.maps[row, columns[finding.label]]
            boxes = boxes_of(finding.label, places, seen.edges[row], self.grounder.rules.places)
            return dataclasses.replace(finding, boxes=on_side(boxes, finding.side))

        return [
            dataclasses.replace(report, findings=tuple(placed(finding, row) for finding in report.findings))
            for row, report in enumerate(reports)
        ]
