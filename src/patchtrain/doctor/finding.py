"""One thing the doctor found."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

# ok; slow: works, but slower or less safely than it could; broken: what it is for will fail;
# absent: something optional that is not there.
Status = Literal["ok", "slow", "broken", "absent"]


@dataclass(frozen=True)
class Finding:
    """What was found about ``name``, in words and numbers, and what to do about it."""

    name: str
    status: Status
    text: str
    todo: str = ""
    data: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def verdict(findings: Iterable[Finding]) -> Status:
    """The worst of all: broken, slow or ok."""
    found = {finding.status for finding in findings}
    return "broken" if "broken" in found else "slow" if "slow" in found else "ok"
