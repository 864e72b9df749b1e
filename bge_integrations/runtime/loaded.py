"""The loaded models: who leases them, each device's budget of bytes, and eviction of the least recently used."""

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
        key: All that decides its bytes on the device.
        nbytes: The bytes it takes or, once they are reserved, will take.
        engine: The engine that runs it; not set while it loads.
        loading: Whether it still loads.
        leases: Who uses it now: the futures of calls, and the source that it is loaded for.
        used: The table's count of leases when it was last leased.
        leaving: Whether it takes no new calls and is freed when the last lease ends.
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
    """A table of the models in the cache: at most one copy of each key, also while one loads or leaves.

    Args:
        budget: Most bytes of weights on each device: bytes as an int, a fraction of the device as a float, None for no
            limit.
        max_waiting: Number of calls that may wait for a model.
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
        """Return the models that have finished loading."""
        with self._changed:
            return [resident for resident in self._table.values() if not resident.loading]

    def depth(self, key: ModelKey) -> int:
        """Return the number of calls that wait for a model or run on it; 0 where it is not loaded."""
        with self._changed:
            resident = self._table.get(key)
            return resident.engine.stats.queue_depth if resident and not resident.loading else 0

    def lease_if_ready(self, key: ModelKey, holder: object) -> Resident | None:
        """Lease a model to `holder` and return it; None where that would take a load or a wait."""
        with self._changed:
            resident = self._table.get(key)
            if resident is None or resident.loading or resident.leaving:
                return None
            self._clock += 1
            resident.used = self._clock
            resident.leases.add(holder)
            return resident

    def lease(self, resolved: Resolved, holder: object) -> Resident:
        """Lease a model to `holder` and return it, after loading it if it isn't there; blocks.

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
        """Lease a model that is already leased to one more holder."""
        with self._changed:
            resident.leases.add(holder)

    def release(self, resident: Resident, holder: object) -> None:
        """End the lease of `holder`, unless it has ended."""
        with self._changed:
            resident.leases.discard(holder)
            if not resident.leases:
                self._changed.notify_all()

    def leave(self, chosen: Callable[[ModelKey], bool]) -> int:
        """Free the chosen models once their calls have ended; wait for those that load or leave already.

        Returns:
            The number of models that this call freed.
        """
        with self._changed:
            wanted = [r for r in self._table.values() if chosen(r.key)]
            self._changed.wait_for(lambda: all(not r.loading or self._table.get(r.key) is not r for r in wanted))
            mine = [r for r in wanted if r.ready and self._table.get(r.key) is r]
            for resident in mine:
                resident.leaving = True
            try:
                self._changed.wait_for(lambda: not any(r.leases for r in mine))
            except BaseException:  # after Ctrl-C they stay, and serve again
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
        """Forget the parent's models in a forked child, without freeing them, and return them."""
        left = list(self._table.values())
        self._table.clear()
        self._arriving.clear()
        self._changed = threading.Condition()
        return left

    def _make_room(self, newcomer: Resident, nbytes: int) -> None:
        """Reserve `nbytes`, evicting models by least recent use: idle ones at once, busy ones after their calls.

        Loads get room in the order in which they came, so none waits for ever; a load passes earlier ones only where
        that takes no room from them.
        """
        if self._budget is None:
            return
        device = newcomer.key.device
        limit = int(self._budget * total_bytes(device)) if isinstance(self._budget, float) else self._budget
        if nbytes > limit:
            holders = ", ".join(f"{r.key.model} ({r.nbytes:,} bytes)" for r in self.loaded() if r.key.device == device)
            raise OverBudgetError(
                f"{newcomer.key.model} needs {nbytes:,} bytes on {device}, and the cache's budget there is {limit:,}. "
                f"Loaded now: {holders or 'nothing'}. Raise the budget, or load it in a smaller dtype."
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
                for resident in leaving:  # the load has been given up: they stay, and serve again
                    resident.leaving = False
                    self.evictions -= 1
                self._changed.notify_all()

    def _reserve(self, newcomer: Resident, limit: int, leaving: list[Resident]) -> bool:
        """Reserve the newcomer's room if it is free; else choose a model to evict, or wait until one may be freed.

        Args:
            newcomer: The model that needs room, one of `_arriving`.
            limit: The device's budget in bytes.
            leaving: The models that leave for it; one that is chosen here is added.

        Returns:
            Whether the newcomer has its room.
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
                chosen.leaving = True  # it takes no new calls, so none can keep it here
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
