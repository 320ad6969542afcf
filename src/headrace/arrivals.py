"""How many samples wait to be learned by a cycle: what may start one before its time is up."""

from __future__ import annotations

from headrace import turns
from headrace.declaration import LineSpec
from headrace.line import LineStore
from headrace.records import newest_interval_end
from headrace.sample import head_tick, read_tick
from headrace.settings import Settings


class Arrivals:
    """Counts the samples of a line that neither its champion nor a cycle has looked at.

    Made once and asked often: each tick's manifest is read once, however long the line is stale.
    """

    def __init__(self, settings: Settings, spec: LineSpec) -> None:
        self._home = settings.line_home(spec.line)
        self._settings, self._spec = settings, spec
        self._store = LineStore(settings.line_store_url(spec.line), spec.line)
        self._start = self._counted = self._found = 0

    def waiting(self) -> int:
        """Samples from where the last cycle ended to the head; 0 while none could be learned.

        A window that was refused counts as looked at, so it starts no second cycle. None can be
        learned without a champion to continue, or while a learner takes them.
        """
        champion = self._store.champion()
        if champion is None or turns.alive(self._home):
            return 0
        start = max(
            self._store.get(champion.version).to_tick,
            newest_interval_end(self._settings, self._spec),
        )
        if start != self._start:
            self._start = self._counted = start
            self._found = 0
        head = head_tick(self._home)
        for tick in range(self._counted, head):
            self._found += read_tick(self._home, tick).counts["samples"]
        self._counted = max(self._counted, head)
        return self._found
