"""A call as data: what to compute, with which model, how, and within which limits."""

import functools
from abc import abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bge_integrations.inference.plan import Plan
from bge_integrations.runtime.source import ModelSource, Resolved


class Options(Hashable, Protocol):
    """What besides the model decides a call's numbers: hashable data that pickles."""

    @abstractmethod
    def plan(self, resolved: Resolved) -> Plan:
        """How the resolved model computes a call with these options. Reads nothing else and changes nothing.

        Raises:
            ValueError: The model's files show that it can't; the weights need not be loaded for that.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One call. It pickles, so the cache that serves it may live in this process or in another.

    Attributes:
        source: The model.
        options: What becomes of the items.
        items: Texts, or pairs of texts.
        max_batch_tokens: Most tokens of a forward that computes some of them; None takes the device's default.
        refuse_long: Refuse an item over the limit instead of cutting it.
        first: What messages call the first item.
        patient: Where too many calls wait, wait for admission instead of being refused.
    """

    source: ModelSource
    options: Options
    items: Sequence[Any]
    max_batch_tokens: int | None = None
    refuse_long: bool = False
    first: int = 0
    patient: bool = False


@functools.lru_cache(maxsize=1024)
def plan_of(options: Options, resolved: Resolved) -> Plan:
    """`options.plan(resolved)`, made once."""
    return options.plan(resolved)
