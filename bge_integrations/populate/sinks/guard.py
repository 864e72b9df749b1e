"""The guard against two models in one store, which checks and writes the model's fingerprint.

A fingerprint says that one model made all vectors of the store. So it is written after the store has taken vectors of
that model, never before. A store that holds vectors but no fingerprint is judged by its vectors.
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
"""How many documents are read from a store without a fingerprint."""

_TEXTS = 4
"""How many of their texts, the shortest ones, are embedded again."""

_TOLERANCE = 0.1
"""How far two vectors of one text and one model may be apart, as a part of their length.

In bfloat16, or stored in 8 bits, vectors of the model that ships move by 0.01 (measured); deep models move more. A
store that compresses vectors further than that needs `force=True`.
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """A stored document that shows which model filled the store; text or vector is None if the store lacks it.

    Attributes:
        id: The document's id.
        text: The text that was embedded.
        vector: The vector as the store keeps it, float32 (dim,).
    """

    id: str
    text: str | None
    vector: NDArray[np.float32] | None


class Guarded(Protocol):
    """A store that can keep a fingerprint."""

    @property
    def normalises(self) -> bool:
        """Whether the store scales vectors to length 1."""

    def read_fingerprint(self) -> str | None:
        """Return the fingerprint that is kept with the store; None if there is none."""

    def write_fingerprint(self, fingerprint: str) -> None:
        """Write a fingerprint to the store."""

    def sample(self, count: int) -> list[Sample]:
        """Return up to `count` stored documents; [] if the store is empty."""


class Guard:
    """A check that the model of a run is the one that filled the store, by its fingerprint or its vectors.

    Args:
        store: The store.
        core: The model of the run.
        force: Fill the store even if another model has filled it.

    Raises:
        FingerprintMismatchError: Another model filled the store, as its fingerprint or its vectors show.
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
        """Write the fingerprint, after the store has taken vectors of the model.

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
        """Check at the end of a run that the store still belongs to this model.

        With `force`, a store that holds documents gets the model's fingerprint, even if the run added none.

        Raises:
            FingerprintMismatchError: Another model has filled the store at the same time.
        """
        if self._is_kept:
            refuse_another(store.read_fingerprint(), self._fingerprint)
        elif self._force and store.sample(1):
            self.claim(store)

    def _adopt(self, store: Guarded, held: Sequence[Sample], core: Core) -> None:
        """Compare the vectors of a store without a fingerprint with the model's; claim the store if they agree."""
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
                "it, or the same with other settings: use that one, or fill a new collection; force=True fills this "
                "one anyway."
            )
        if texts:
            self.claim(store)
            return
        self._may_claim = False
        logger.warning(
            "This collection holds vectors, but neither a fingerprint nor texts that show which model made them: it is "
            "filled, but nothing guards it against vectors of another model than %s.",
            core.model,
        )


def faiss_vector(index: Any, row: int) -> NDArray[np.float32] | None:
    """Return a vector of a FAISS index; None if that kind of index cannot return vectors."""
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
