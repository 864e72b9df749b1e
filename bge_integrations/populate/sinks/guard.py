"""Whose vectors a store holds, and when a model's fingerprint is kept with it.

A fingerprint says that the vectors beside it are one model's. So it is written when a store has taken vectors of that
model, never before, and a store that holds vectors without one is believed only what its own vectors show.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from bge_integrations.errors import FingerprintMismatchError
from bge_integrations.populate.embedders import Core
from bge_integrations.stores.fingerprint import refuse_another
from bge_integrations.types import M3Embeddings

logger = logging.getLogger(__name__)

SAMPLE = 64
"""Documents that a store without a fingerprint is asked for."""

_TEXTS = 4
"""Texts among them, the shortest ones, that are embedded again."""

_TOLERANCE = 0.1
"""How far two vectors may be apart, as a part of their length, and still be one text's of one model.

In bfloat16, or kept in 8 bits, vectors of the model that ships move by 0.01 (measured); deep models move more. A store
that compresses vectors further than that needs `force=True`.
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """What a store holds under one id; text or vector are None where it does not tell.

    Attributes:
        id: The document's id.
        text: What the vector was made of.
        vector: The vector as the store keeps it, float32 (dim,).
    """

    id: str
    text: str | None
    vector: NDArray[np.float32] | None


class Guarded(Protocol):
    """A store with a place for a fingerprint."""

    @property
    def normalises(self) -> bool:
        """Whether vectors get the length 1 in the store."""

    def read_fingerprint(self) -> str | None:
        """What is kept with the store."""

    def write_fingerprint(self, fingerprint: str) -> None:
        """Keep a fingerprint with the store."""

    def sample(self, count: int) -> list[Sample]:
        """Some of what the store holds; empty where it holds nothing."""


class Guard:
    """The fingerprint of a run's model, on its way to the store that the run fills and that holds it.

    Args:
        store: The store.
        core: The model.
        force: Fill what another model has filled.

    Raises:
        FingerprintMismatchError: Another model filled the store: its fingerprint says so, or its vectors do.
    """

    def __init__(self, store: Guarded, core: Core, *, force: bool) -> None:
        self._fingerprint = core.fingerprint
        self._force = force
        self._may_claim = True
        kept = store.read_fingerprint()
        if not force:
            refuse_another(kept, self._fingerprint)
        self._is_kept = kept == self._fingerprint
        if kept is None and not force and (held := store.sample(SAMPLE)):
            self._adopt(store, held, core)

    def claim(self, store: Guarded) -> None:
        """Keep the fingerprint, once the store has taken vectors of the model.

        Raises:
            FingerprintMismatchError: Another model has filled the store since the run began.
        """
        if self._is_kept or not self._may_claim:
            return
        kept = store.read_fingerprint()
        if not self._force:
            refuse_another(kept, self._fingerprint)
        store.write_fingerprint(self._fingerprint)
        self._is_kept = True

    def settle(self, store: Guarded) -> None:
        """At the end of a run, see that the store is still this model's.

        With `force` the store is the model's from now on, also where there was nothing to add.

        Raises:
            FingerprintMismatchError: Another model has filled the store at the same time.
        """
        if self._is_kept:
            refuse_another(store.read_fingerprint(), self._fingerprint)
        elif self._force and store.sample(1):
            self.claim(store)

    def _adopt(self, store: Guarded, held: Sequence[Sample], core: Core) -> None:
        """Take a store without a fingerprint for the model's own where its vectors are those of the model."""
        known = [(one, one.vector) for one in held if one.vector is not None]
        wide = [one for one, vector in known if vector.shape != (core.dim,)]
        texts = sorted((len(one.text), one.text, index) for index, (one, _) in enumerate(known) if one.text)[:_TEXTS]
        if texts and not wide:
            computed = _dense(core.encode_documents([text for _, text, _ in texts]))
            pairs = zip((known[index] for _, _, index in texts), computed, strict=True)
            other = [one for (one, vector), again in pairs if not _alike(vector, again, store.normalises)]
        else:
            other = wide
        if other:
            shown = f"has another width than {core.dim}" if wide else "is another one when its text is embedded again"
            raise FingerprintMismatchError(
                f"This collection has no fingerprint, and its vectors are not those of {core.model}: that of document "
                f"{other[0].id} {shown} ({len(other)} of {len(known if wide else texts)} differ). Another model filled "
                "it, or the same with other settings: take that one, or fill a new collection; force=True fills this "
                "one all the same."
            )
        if texts:
            self.claim(store)
            return
        self._may_claim = False
        logger.warning(
            "This collection holds vectors, and neither a fingerprint nor texts that would tell which model made them: "
            "it is filled, but nothing guards it against another model than %s.",
            core.model,
        )


def faiss_vector(index: Any, row: int) -> NDArray[np.float32] | None:
    """Give a vector of a FAISS index; None where that kind of index cannot."""
    try:
        return np.asarray(index.reconstruct(row), np.float32)
    except RuntimeError:
        return None


def _alike(stored: NDArray[np.float32], computed: NDArray[np.float32], normalised: bool) -> bool:
    length = float(np.linalg.norm(computed))
    expected = computed / length if normalised and length else computed
    return bool(np.linalg.norm(stored - expected) <= _TOLERANCE * np.linalg.norm(expected))


def _dense(embeddings: Any) -> NDArray[np.float32]:
    return np.asarray(embeddings.dense if isinstance(embeddings, M3Embeddings) else embeddings, np.float32)
