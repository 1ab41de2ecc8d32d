"""Below the facts of the computer: what looks after it, as HTML. Only people at it see this."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from app import doctor
from app.doctor import Finding
from pipelines.progress import plain_size
from pipelines.text import prompt_files

_PASTE = "It names nobody and holds no prompts and no tokens, so it can be pasted anywhere."


def care(prompts: int, report: Sequence[Finding], notice: str) -> str:
    """What encoded prompts occupy, the button that examines the computer, and what it found."""
    kept = f"{plain_size(prompts)} of {plain_size(prompt_files.MAX_BYTES)}"
    off = "" if prompts else " disabled"
    said = f'<p class="care-said" role="status">{escape(notice)}</p>'
    return (
        '<section class="care" aria-label="Care of this computer"><div class="care-row">'
        f"<p>Encoded prompts: {kept}</p>"
        f'<button type="button" class="action" data-do="clear-prompts"{off}>Clear'
        '<span class="unseen"> encoded prompts</span></button>'
        '<button type="button" class="action last" data-do="examine">'
        f"Check this computer</button></div>{said}{_report(report)}</section>"
    )


def _report(findings: Sequence[Finding]) -> str:
    if not findings:
        return ""
    rows = "".join(
        f'<li data-state="{finding.state}"><b>{escape(finding.name)}</b>'
        f"<span>{_mark(finding)}{escape(finding.fact)}</span></li>"
        for finding in findings
    )
    return (
        f'<div class="report" data-text="{escape(doctor.report(findings))}">'
        f'<h2 tabindex="-1">{_summary(findings)}</h2><p class="shelf-note">{_PASTE}</p>'
        f'<ul>{rows}</ul><div class="actions">'
        '<button type="button" class="action lead" data-do="copy">Copy</button>'
        '<button type="button" class="action" data-do="close-report">Close'
        '<span class="unseen"> the report</span></button></div></div>'
    )


def _mark(finding: Finding) -> str:
    words = {"warning": "Warning: ", "fault": "Fault: "}.get(finding.state, "")
    return f"<em>{words}</em>" if words else ""


def _summary(findings: Sequence[Finding]) -> str:
    counted = []
    for state, word in (("fault", "fault"), ("warning", "warning")):
        many = sum(finding.state == state for finding in findings)
        if many:
            counted.append(f"{many} {word}{'s' if many > 1 else ''}")
    return " and ".join(counted) or "Everything is in order"
