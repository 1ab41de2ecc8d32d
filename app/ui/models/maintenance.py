"""Below the facts of the computer: what looks after it, as HTML. Only people at it see this."""

from __future__ import annotations

from collections.abc import Sequence

from app import doctor
from app.doctor import Finding
from app.markup import render
from pipelines.progress import plain_size
from pipelines.text import prompt_files


def care(prompts: int, report: Sequence[Finding], notice: str) -> str:
    """What encoded prompts occupy, the button that examines the computer, and what it found."""
    return render(
        "ui/models/maintenance.html",
        "maintenance",
        kept=f"{plain_size(prompts)} of {plain_size(prompt_files.MAX_BYTES)}",
        empty=not prompts,
        notice=notice,
        findings=report,
        text=doctor.report(report) if report else "",
        summary=_summary(report),
    )


def _summary(findings: Sequence[Finding]) -> str:
    counted = []
    for state, word in (("fault", "fault"), ("warning", "warning")):
        many = sum(finding.state == state for finding in findings)
        if many:
            counted.append(f"{many} {word}{'s' if many > 1 else ''}")
    return " and ".join(counted) or "Everything is in order"
