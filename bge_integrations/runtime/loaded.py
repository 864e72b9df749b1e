"""The models that are loaded: counted leases, a budget a device, eviction by least recent use."""

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from bge_integrations.errors import OverBudgetError
from bge_integrations.inference.engine import Engine
from bge_integrations.process import despite_shutdown
from bge_integrations.runtime import loader
from bge_integrations.runtime.device import total_bytes
from bge_integrations.runtime.request import ModelKey, Resolved
from bge_integrations.runtime.weights import loaded_bytes

logger = logging.getLogger(__name__)


@dataclass(eq=False, slots=True)
class Resident:
    """A model in the cache.

    Attributes:
        key: What it is.
        nbytes: The room it takes or, once that is granted, will take.
        engine: Not there while it loads.
        loading: Whether it still loads.
        leases: Who uses it now: the futures of calls, and whoever loads it for them.
        used: When it was last leased, as the table counts.
        leaving: It takes no new calls and goes when the last lease ends.
    """

    key: ModelKey
    nbytes: int = 0
    engine: Engine = field(init=False)
    loading: bool = True
    leases: set[object] = field(default_factory=set)
    used: int = 0
    leaving: bool = False

    @property
    def ready(self) -> bool:
        return not self.loading and not self.leaving


class Residents:
    """At most one copy of each key, also while one loads or leaves.

    Args:
        budget: Most bytes of weights on each device: bytes as an int, a fraction of the device as a float, None for no
            limit.
        max_waiting: Calls that may wait for a model.
    """

    def __init__(self, budget: int | float | None, max_waiting: int) -> None:
        self._budget = budget
        self._max_waiting = max_waiting
        self._changed = threading.Condition()
        self._table: dict[ModelKey, Resident] = {}
        self._arriving: dict[Resident, int] = {}
        self._clock = 0
        self.loads = self.evictions = 0

    def loaded(self) -> list[Resident]:
        """The models that have finished loading."""
        with self._changed:
            return [resident for resident in self._table.values() if not resident.loading]

    def depth(self, key: ModelKey) -> int:
        """Calls that wait for a model or run on it; 0 where it is not loaded."""
        with self._changed:
            resident = self._table.get(key)
            return resident.engine.stats.queue_depth if resident and not resident.loading else 0

    def lease_if_ready(self, key: ModelKey, holder: object) -> Resident | None:
        """A model leased to `holder`, or None where that would take a load or a wait."""
        with self._changed:
            resident = self._table.get(key)
            if resident is None or resident.loading or resident.leaving:
                return None
            self._clock += 1
            resident.used = self._clock
            resident.leases.add(holder)
            return resident

    def lease(self, resolved: Resolved, holder: object) -> Resident:
        """A model leased to `holder`, after loading it if it isn't there; blocks.

        Raises:
            OverBudgetError: It can never fit the budget.
            MissingWeightsError: Its files are absent, truncated or incomplete.
        """
        key = resolved.key
        files = (*resolved.folder.weights(), *resolved.folder.module_weights(), *resolved.folder.heads.values())
        nbytes = loaded_bytes(files, key.dtype)
        with self._changed:
            while self._table.get(key):
                if resident := self.lease_if_ready(key, holder):
                    return resident
                self._changed.wait()
            resident = self._table[key] = Resident(key)
        try:
            self._make_room(resident, nbytes)
            engine = despite_shutdown(lambda: loader.load(resolved, self._max_waiting))
        except BaseException:
            self._remove(resident)
            raise
        with self._changed:
            resident.engine, resident.nbytes, resident.loading = engine, engine.backend.nbytes, False
            self.loads += 1
            self._clock += 1
            resident.used = self._clock
            resident.leases.add(holder)
            self._changed.notify_all()
            return resident

    def lease_again(self, resident: Resident, holder: object) -> None:
        """Leases a leased model to one more."""
        with self._changed:
            resident.leases.add(holder)

    def release(self, resident: Resident, holder: object) -> None:
        """Ends the lease of `holder`, unless it has ended."""
        with self._changed:
            resident.leases.discard(holder)
            if not resident.leases:
                self._changed.notify_all()

    def leave(self, chosen: Callable[[ModelKey], bool]) -> int:
        """Frees the chosen models once their calls have ended; waits for those that load or leave already.

        Returns:
            How many it freed.
        """
        with self._changed:
            wanted = [r for r in self._table.values() if chosen(r.key)]
            self._changed.wait_for(lambda: all(not r.loading or self._table.get(r.key) is not r for r in wanted))
            mine = [r for r in wanted if r.ready and self._table.get(r.key) is r]
            for resident in mine:
                resident.leaving = True
            try:
                self._changed.wait_for(lambda: not any(r.leases for r in mine))
            except BaseException:  # Ctrl-C: they stay, and serve again
                for resident in mine:
                    resident.leaving = False
                self._changed.notify_all()
                raise
        for resident in mine:
            self._free(resident)
        with self._changed:
            self._changed.wait_for(lambda: all(self._table.get(r.key) is not r for r in wanted))
        return len(mine)

    def abandon(self) -> list[Resident]:
        """In a forked child: forgets the parent's models without freeing them, and returns them."""
        left = list(self._table.values())
        self._table.clear()
        self._arriving.clear()
        self._changed = threading.Condition()
        return left

    def _make_room(self, newcomer: Resident, nbytes: int) -> None:
        """Reserves `nbytes`, evicting models by least recent use: idle ones at once, busy ones after their calls.

        Loads get room in the order in which they came, so none waits for ever; one passes the others where that takes
        no room from them.
        """
        if self._budget is None:
            return
        device = newcomer.key.device
        limit = int(self._budget * total_bytes(device)) if isinstance(self._budget, float) else self._budget
        if nbytes > limit:
            holders = ", ".join(f"{r.key.model} ({r.nbytes:,} bytes)" for r in self.loaded() if r.key.device == device)
            raise OverBudgetError(
                f"{newcomer.key.model} needs {nbytes:,} bytes on {device}, and the cache's budget there is {limit:,}. "
                f"Resident now: {holders or 'nothing'}. Raise the budget, or load it in a smaller dtype."
            )
        leaving: list[Resident] = []
        with self._changed:
            self._arriving[newcomer] = nbytes
        try:
            while not self._reserve(newcomer, limit, leaving):
                for resident in [r for r in leaving if not r.leases]:
                    logger.info("evicting %s from %s for %s", resident.key.model, device, newcomer.key.model)
                    leaving.remove(resident)
                    self._free(resident)
        finally:
            with self._changed:
                del self._arriving[newcomer]
                for resident in leaving:  # the load is given up: they stay, and serve again
                    resident.leaving = False
                    self.evictions -= 1
                self._changed.notify_all()

    def _reserve(self, newcomer: Resident, limit: int, leaving: list[Resident]) -> bool:
        """Reserves the newcomer's room if it is free; else waits until something may be freed.

        Args:
            newcomer: One of `_arriving`.
            limit: The device's budget.
            leaving: The models that leave for it; those chosen here are added.

        Returns:
            Whether it has its room.
        """
        with self._changed:
            nbytes = self._arriving[newcomer]
            neighbours = [r for r in self._table.values() if r.key.device == newcomer.key.device]
            arriving = [r for r in self._arriving if r.key.device == newcomer.key.device]
            earlier = arriving[: arriving.index(newcomer)]
            staying = sum(r.nbytes for r in neighbours if not r.leaving)
            fits = staying + sum(self._arriving[r] for r in earlier) + nbytes <= limit
            if fits and sum(r.nbytes for r in neighbours) + nbytes <= limit:
                newcomer.nbytes = nbytes
                return True
            candidates = [r for r in neighbours if r.ready]
            if not fits and not earlier and candidates:
                chosen = min(candidates, key=lambda r: (bool(r.leases), r.used))
                chosen.leaving = True  # it takes no new calls, so they can't keep it
                self.evictions += 1
                leaving.append(chosen)
            elif all(r.leases for r in leaving):
                self._changed.wait()
            return False

    def _free(self, resident: Resident) -> None:
        resident.engine.close()
        resident.engine.join()
        self._remove(resident)

    def _remove(self, resident: Resident) -> None:
        with self._changed:
            del self._table[resident.key]
            self._changed.notify_all()
