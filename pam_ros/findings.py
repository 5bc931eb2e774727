"""What `pam doctor` finds: one line each, with a verdict and, if something is wrong, the fix."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import Enum


class Verdict(Enum):
    """How serious a finding is."""

    OK = "ok"
    NOTE = "note"  # something optional is missing or unusual
    ERROR = "error"  # pam_ros cannot work like this


@dataclass(frozen=True, slots=True)
class Finding:
    """One fact about this machine.

    Attributes:
        group: what it is about: "versions", "gpu", "memory", "models", "ros", "fonts".
        name: what was checked.
        value: what was found.
        fix: what to do; empty if there is nothing to do.
    """

    group: str
    name: str
    value: str
    verdict: Verdict = Verdict.OK
    fix: str = ""

    def as_json(self) -> dict[str, str]:
        """Its fields as JSON values."""
        return asdict(self) | {"verdict": self.verdict.value}
