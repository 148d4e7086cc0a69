"""Energy of the processor packages from the RAPL counters, if the kernel allows reading them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class _Package:
    counter: Path
    range_uj: int


class Rapl:
    """Counters of all readable packages; ``reason`` says why there are none."""

    def __init__(self, powercap: Path = POWERCAP) -> None:
        self._packages: list[_Package] = []
        self.reason: str | None = None
        zones = sorted(powercap.glob("intel-rapl:*")) if powercap.exists() else []
        for zone in zones:
            if zone.name.count(":") != 1:  # a domain inside a package
                continue
            try:
                package = _Package(zone / "energy_uj", int((zone / "max_energy_range_uj").read_text()))
                package.counter.read_text()
            except (OSError, ValueError) as error:
                self.reason = f"{zone.name} is not readable ({error}): let the user read energy_uj, or run as root"
                continue
            self._packages.append(package)
        if not self._packages and self.reason is None:
            self.reason = "no RAPL counters on this machine (virtual machines hide them)"

    @property
    def available(self) -> bool:
        return bool(self._packages)

    def read_uj(self) -> list[int]:
        """Counters of all packages in microjoules."""
        return [int(package.counter.read_text()) for package in self._packages]

    def joules_since(self, before: list[int]) -> float | None:
        """Energy of all packages since ``before``; correct if no counter wrapped more than once."""
        if not self._packages:
            return None
        pairs = zip(before, self.read_uj(), self._packages, strict=True)
        return sum((after - start) % package.range_uj for start, after, package in pairs) / 1e6
