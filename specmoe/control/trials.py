"""Trials of what the estimates cannot predict: another gamma, another N or refresh interval."""

from __future__ import annotations

from collections import deque
from itertools import cycle


class Trials:
    """When one cycle uses half or twice the best known gamma, so that the estimates cover its neighbours.

    A trial may cost ``SHARE`` of the time since the start, less what trials cost before, and of the time to come.  The
    gap to the next one doubles while the best gamma stays.
    """

    SHARE = 0.02
    FEWEST, MOST = 4, 64  # cycles between two trials

    def __init__(self) -> None:
        self._allowance_s = 0.0
        self._gap = self._wait = self.FEWEST
        self._longer, self._gamma = False, 0

    def passed(self, seconds: float) -> None:
        """A cycle took so long."""
        self._wait -= 1
        self._allowance_s += self.SHARE * seconds

    def due(self, gamma: int, to_come_s: float, loss_s: list[float]) -> int | None:
        """The gamma to try for one cycle instead of ``gamma``; ``loss_s[g]`` is what each is expected to cost."""
        longest = len(loss_s) - 1
        if max(gamma, self._gamma) >= 2 * max(1, min(gamma, self._gamma)):  # what is known of its neighbours is old
            self._gap, self._wait = self.FEWEST, min(self._wait, self.FEWEST)
        self._gamma = gamma
        if self._wait > 0 or longest < 1:
            return None
        longer = gamma == 0 or (not self._longer and gamma < longest)
        tried = min(longest, 2 * max(1, gamma)) if longer else gamma // 2 if gamma > 2 else 0
        if loss_s[tried] > min(self._allowance_s, self.SHARE * to_come_s):
            return None
        self._allowance_s -= loss_s[tried]
        self._longer = longer
        self._gap = self._wait = min(self.MOST, 2 * self._gap)
        return tried


class Knobs:
    """N and refresh interval: one is doubled or halved for ``TRIAL`` drafting cycles and stays if speed rose by 3 %.

    Without ``moves_experts`` N stays as it is.
    """

    TRIAL, REST = 6, 12

    def __init__(
        self, draft_experts: int, most_experts: int, refresh_interval: int, moves_experts: bool = True
    ) -> None:
        self.draft_experts, self.refresh_interval = draft_experts, refresh_interval
        self._most = most_experts
        moves = ((2.0, 1.0), (1.0, 2.0), (0.5, 1.0), (1.0, 0.5))
        self._moves = cycle(move for move in moves if moves_experts or move[0] == 1.0)
        self._rates: deque[float] = deque(maxlen=self.TRIAL)
        self._before: tuple[int, int, float] | None = None  # N, interval and rates while a trial runs
        self._left = self.REST

    def learn(self, rate: float) -> None:
        """Tokens per second and row of a drafting cycle."""
        self._rates.append(rate)
        self._left -= 1
        if self._left > 0:
            return
        if self._before is None:
            self._before, self._left = (self.draft_experts, self.refresh_interval, sum(self._rates)), self.TRIAL
            by_experts, by_interval = next(self._moves)
            self.draft_experts = min(self._most, max(1, int(by_experts * self.draft_experts)))
            self.refresh_interval = min(64, max(1, int(by_interval * self.refresh_interval)))
            return
        (experts, interval, rate_before), self._before, self._left = self._before, None, self.REST
        if sum(self._rates) < 1.03 * rate_before:
            self.draft_experts, self.refresh_interval, self._left = experts, interval, 2 * self.REST
