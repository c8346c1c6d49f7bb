"""Report of an audit."""

from __future__ import annotations

from collections.abc import Iterable

from pydantic import BaseModel, ConfigDict, computed_field


class Finding(BaseModel):
    """A violation of an invariant."""

    model_config = ConfigDict(frozen=True)

    subject: str
    detail: str


class Invariant(BaseModel):
    """Result of the audit for one invariant.

    Args:
        name: Short name, stable, for machines.
        promise: Description of the invariant.
        checked: How many things it was checked on.
        findings: The breaches, none if it holds.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    promise: str
    checked: int
    findings: tuple[Finding, ...]

    @computed_field  # type: ignore[prop-decorator] # mypy knows no decorator on top of property
    @property
    def ok(self) -> bool:
        """True if the invariant holds."""
        return not self.findings


class AuditReport(BaseModel):
    """Every invariant, and how many trips there are of each outcome.

    Args:
        invariants: The invariants that were checked.
        confirmed: How many trips are confirmed.
        refused: How many are refused.
        open: How many have no outcome yet.
        remarks: Omitted checks, with reasons.
    """

    model_config = ConfigDict(frozen=True)

    invariants: tuple[Invariant, ...]
    confirmed: int
    refused: int
    open: int
    remarks: tuple[str, ...] = ()

    @computed_field  # type: ignore[prop-decorator] # mypy knows no decorator on top of property
    @property
    def ok(self) -> bool:
        """True if all checked invariants hold."""
        return all(invariant.ok for invariant in self.invariants)


def invariant(name: str, promise: str, checked: int, breaches: Iterable[tuple[str, str]]) -> Invariant:
    """Report on an invariant.

    Args:
        name: See `Invariant`.
        promise: See `Invariant`.
        checked: See `Invariant`.
        breaches: Subject and detail of each breach.
    """
    findings = tuple(Finding(subject=subject, detail=detail) for subject, detail in breaches)
    return Invariant(name=name, promise=promise, checked=checked, findings=findings)
