"""What the controller tries to find out what estimates cannot tell: another gamma, another N or refresh interval."""

from __future__ import annotations

from collections.abc import Callable


class Trials:
    """When to try another gamma than the best known: rarely, and only while it costs next to nothing.

    A trial's expected loss is paid from an allowance of ``SHARE`` of all time and is no more than that share of the
    time to come, in which it has to pay; between two lie at least so many cycles, twice as many each time nothing
    came of it.
    """

    SHARE = 0.02
    FEWEST, MOST = 4, 64

    def __init__(self) -> None:
        self._allowance_s = 0.0
        self._gap = self._in = self.FEWEST
        self._longer = False

    def passed(self) -> None:
        """A cycle begins."""
        self._in -= 1

    def spent(self, seconds: float) -> None:
        """A cycle took so long."""
        self._allowance_s += self.SHARE * seconds

    def soon(self) -> None:
        """Something changed: what is known of other gammas is old."""
        self._gap = self.FEWEST
        self._in = min(self._in, self._gap)

    def due(self, gamma: int, longest: int, to_come_s: float, loss_s: Callable[[int], float]) -> int | None:
        """A gamma to try for one cycle instead of ``gamma``, up to ``longest``; ``loss_s(g)`` is what it may cost."""
        if self._in > 0 or longest < 1:
            return None
        longer = gamma == 0 or (not self._longer and gamma < longest)
        tried = min(longest, 2 * max(1, gamma)) if longer else gamma // 2 if gamma > 2 else 0
        loss = max(0.0, loss_s(tried))
        if loss > min(self._allowance_s, self.SHARE * to_come_s):
            return None
        self._allowance_s -= loss
        self._longer = longer
        self._gap = min(self.MOST, 2 * self._gap)
        self._in = self._gap
        return tried


class Knobs:
    """N and refresh interval by careful trial: one of them changes for a while, and stays changed if it paid.

    The measure is tokens per second and row over ``TRIAL`` drafting cycles, against as many before.
    """

    TRIAL = 6
    REST = 12

    def __init__(self, draft_experts: int, most_experts: int, refresh_interval: int) -> None:
        self.draft_experts, self.refresh_interval = draft_experts, refresh_interval
        self._most = most_experts
        self._before: list[float] = []
        self._during: list[float] = []
        self._held: tuple[int, int] | None = None
        self._turn = 0
        self._rest = self.REST

    def learn(self, rate: float) -> None:
        """Tokens per second and row of one drafting cycle."""
        if self._held is None:
            self._before = [*self._before, rate][-self.TRIAL :]
            self._rest -= 1
            if self._rest <= 0 and len(self._before) == self.TRIAL:
                self._begin_trial()
            return
        self._during.append(rate)
        if len(self._during) == self.TRIAL:
            if sum(self._during) < 1.03 * sum(self._before):
                self.draft_experts, self.refresh_interval = self._held
                self._rest = 2 * self.REST  # it did not pay: ask less often
            else:
                self._rest = self.REST
            self._held, self._during, self._before = None, [], []

    def _begin_trial(self) -> None:
        candidates = [
            (min(self._most, 2 * self.draft_experts), self.refresh_interval),
            (self.draft_experts, min(64, 2 * self.refresh_interval)),
            (max(1, self.draft_experts // 2), self.refresh_interval),
            (self.draft_experts, max(1, self.refresh_interval // 2)),
        ]
        held = (self.draft_experts, self.refresh_interval)
        for _ in candidates:
            self._turn = (self._turn + 1) % len(candidates)
            if candidates[self._turn - 1] != held:
                self._held = held
                self.draft_experts, self.refresh_interval = candidates[self._turn - 1]
                return
