"""Compare charges in the databases with the audit logs of approvals.

The databases do not record approvals. This part of the audit reads them through the ingress, so it needs a running
platform.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from pydantic import TypeAdapter, ValidationError
from pydantic_settings import BaseSettings

from perdure import IngressClient
from perdure.approvals.audit_log import SignatureStatus, check_approval
from perdure.approvals.messages import ApprovalResult, ApprovalStatus
from perdure.approvals.targets import approval_status
from perdure.errors import ConfigurationError, IngressError, NotFound
from perdure.security import JournalCodec, TrustedKeys
from perdure.security.keys import PrivateKey, PublicKey
from perdure.security.signed_actions import SigningMode, SigningRules
from services.control_plane.approvals.settings import ApprovalsSettings
from services.control_plane.orchestrator.settings import OrchestratorSettings
from services.data_plane.audit import AuditReport, Invariant, audit, confirmed_charges
from services.data_plane.audit.report import invariant
from services.data_plane.audit.trips import ConfirmedCharge
from services.runtime.connections import ingress_client
from services.runtime.platform import Platform
from services.runtime.topology import Topology

_CONCURRENCY: Final = 16
_READ_TIMEOUT: Final = timedelta(seconds=10)


async def audit_platform(
    topology: Topology,
    environment: Mapping[str, str],
    codec: JournalCodec | None,
    *,
    settled: bool = False,
) -> AuditReport:
    """Check all invariants over the databases, and compare them with the approvals if the engine answers.

    Args:
        topology: The platform.
        environment: Environment of its services.
        codec: Codec of an encrypted journal; None for clear text.
        settled: See `services.data_plane.audit.audit`.

    Raises:
        ConfigurationError: A database or a setting cannot be read.
    """
    report = await audit(topology.databases, settled=settled)
    compared = await compare_approvals(topology, environment, codec)
    if isinstance(compared, str):
        return report.model_copy(update={"remarks": (*report.remarks, compared)})
    return report.model_copy(update={"invariants": (*report.invariants, compared)})


async def compare_approvals(
    topology: Topology, environment: Mapping[str, str], codec: JournalCodec | None
) -> Invariant | str:
    """Compare each confirmed trip over the approval limit with its approval.

    Args:
        topology: The platform.
        environment: Environment of its services.
        codec: Codec of an encrypted journal; None for clear text.

    Returns:
        The invariant, or a remark if the engine does not answer.

    Raises:
        ConfigurationError: A database or a setting cannot be read.
    """
    limit, retention, rules = _settings(topology, environment)
    charges = await confirmed_charges(topology.databases, over_minor=limit)
    kept = [each for each in charges if each.charged_at > datetime.now(UTC) - retention]
    url = environment.get("PERDURE_INGRESS_URL") or topology.ingress_url
    try:
        async with ingress_client(url, codec) as ingress:
            found = await _read(ingress, [each.trip_id for each in kept])
    except IngressError as error:
        return f"approvals were NOT compared with {len(kept)} confirmed trips: {error}"
    older = len(charges) - len(kept)
    promise = "each confirmed trip over the limit was approved as charged, and its approval's audit log is intact"
    if older:
        promise += f"; {older} older ones left out, whose approvals may be deleted"
    return invariant("trips-approved", promise, len(kept), judge_approvals(kept, found, rules))


async def unapproved(platform: Platform) -> list[str]:
    """Return what does not hold of the trips on a running platform that needed an approval.

    Args:
        platform: The platform, after the end of all trips.
    """
    topology = platform.topology
    compared = await compare_approvals(topology, platform.environment, platform.codec)
    if isinstance(compared, str):
        return [compared]
    return [f"trip {finding.subject}: {finding.detail}" for finding in compared.findings]


def judge_approvals(
    charges: Iterable[ConfirmedCharge], found: Mapping[str, ApprovalStatus], rules: SigningRules
) -> list[tuple[str, str]]:
    """Return the confirmed trips whose approval does not match their charge, with the reason.

    Args:
        charges: Charges of confirmed trips over the limit.
        found: Existing approvals by trip id.
        rules: Rules for signatures.
    """
    breaches = []
    for charge in charges:
        approval = found.get(charge.trip_id)
        reason = f"charged {charge.amount_minor} minor units without an approval"
        if approval is not None:
            reason = _mismatch(charge, approval, rules)
        if reason:
            breaches.append((charge.trip_id, reason))
    return breaches


def _mismatch(charge: ConfirmedCharge, approval: ApprovalStatus, rules: SigningRules) -> str:
    if approval.status != ApprovalResult.APPROVED:
        return f"charged {charge.amount_minor} minor units, and its approval is {approval.status}"
    last = next((entry for entry in approval.audit_log if entry.result == ApprovalResult.APPROVED), None)
    if last is None:
        return "its approval's audit log has no entry that approves it"
    check = check_approval(approval, rules)
    if not check.audit_log.intact:
        return f"its approval's audit log was changed: {check.audit_log}"
    bad = [action for action in check.actions if action.status is SignatureStatus.BAD]
    if bad:
        return f"its approval's audit log has {bad[0]}"
    if _ordered_payment(approval.payload) != (charge.account, charge.amount_minor):
        return f"charged {charge.amount_minor} minor units to {charge.account}, but a different payment was approved"
    return ""


def _ordered_payment(payload: Any) -> tuple[Any, Any]:
    """Return account and amount of the approved order."""
    payment = payload.get("payment") if isinstance(payload, dict) else None
    return (payment.get("account"), payment.get("amount_minor")) if isinstance(payment, dict) else (None, None)


async def _read(ingress: IngressClient, trip_ids: list[str]) -> dict[str, ApprovalStatus]:
    """Return the existing approvals by trip id."""
    limit = asyncio.Semaphore(_CONCURRENCY)

    async def read(trip_id: str) -> ApprovalStatus | None:
        async with limit:
            try:
                return await ingress.call(approval_status, key=trip_id, timeout=_READ_TIMEOUT)
            except IngressError as error:
                if error.code == NotFound.code:
                    return None
                raise

    statuses = await asyncio.gather(*map(read, trip_ids))
    return {trip_id: status for trip_id, status in zip(trip_ids, statuses, strict=True) if status is not None}


def _settings(topology: Topology, environment: Mapping[str, str]) -> tuple[int, timedelta, SigningRules]:
    """Return the approval limit, the retention of approvals, and the rules for signatures."""
    limit: int = _setting(environment, OrchestratorSettings, "PERDURE_ORCHESTRATOR_", "approval_limit_minor")
    retention: timedelta = _setting(environment, ApprovalsSettings, "PERDURE_APPROVALS_", "retention")
    texts = (part.strip() for part in environment.get("PERDURE_ISSUER_KEYS", "").split(","))
    keys = [PublicKey.parse(text) for text in texts if text]
    file = Path(environment.get("PERDURE_CONSOLE_ISSUER_KEY_FILE") or topology.keys_dir / "console-issuer.pem")
    if file.exists():
        keys.append(PrivateKey.load(file).public)
    if not keys:
        return limit, retention, SigningRules()
    is_signed = environment.get("PERDURE_ACTIONS") == SigningMode.SIGNED
    mode = SigningMode.SIGNED if is_signed else SigningMode.UNSIGNED
    return limit, retention, SigningRules(mode=mode, trusted_keys=TrustedKeys(issuers=tuple(keys)))


def _setting(environment: Mapping[str, str], settings: type[BaseSettings], prefix: str, name: str) -> Any:
    """Return one setting of a service; its other settings may be invalid in this process."""
    field, variable = settings.model_fields[name], f"{prefix}{name.upper()}"
    text = environment.get(variable)
    if not text:
        return field.default
    try:
        return TypeAdapter[Any](field.rebuild_annotation()).validate_strings(text)
    except ValidationError as error:
        raise ConfigurationError(f"{variable}={text}: {error.errors()[0]['msg']}") from error
