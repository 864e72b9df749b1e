"""An index of documents' sparse vectors, which is searched exactly and kept in one file."""

import hashlib
import json
import os
import threading
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, Self
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from bge_integrations.errors import FingerprintMismatchError
from bge_integrations.types import SparseEmbedding

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_SPARE_ROWS = 1024
"""The index keeps up to this many rows of deleted documents, so that a small one is not rebuilt at each change."""

_UNKNOWN = 0
"""The digest that stands for a text that was not given."""


@dataclass(slots=True)
class _Postings:
    """The rows of the documents that hold one token, and the token's weight in each."""

    rows: "array[int]" = field(default_factory=lambda: array("I"))
    values: "array[float]" = field(default_factory=lambda: array("f"))

    @classmethod
    def of(cls, rows: NDArray[np.integer[Any]], values: NDArray[np.float32]) -> Self:
        """Make postings from numpy arrays."""
        return cls(array("I", rows.astype(np.uint32).tobytes()), array("f", values.tobytes()))


class SparseIndex:
    """Sparse vectors of documents by id, searched exactly by inner product.

    It grows with `add`, lives in memory, and is kept on disk by `save` and `load`. Any number of threads may use it.
    Use it beside a vector store that keeps the texts and the dense vectors under the same ids.

    Args:
        fingerprint: The fingerprint of the model that fills it, `embedder.with_outputs("sparse").fingerprint`; None
            until one is given to `add`.

    Example:
        ```python
        index = SparseIndex()
        index.add(["a", "b"], embedder.encode_documents(["Pandas eat bamboo.", "Paris is a city."]).sparse)
        index.search(embedder.encode_queries(["what do pandas eat?"]).sparse[0], k=1)  # [("a", 0.27)]
        index.save("notes.sparse.npz")
        ```
    """

    def __init__(self, fingerprint: str | None = None) -> None:
        self.fingerprint = fingerprint
        self._ids: list[str] = []
        self._rows: dict[str, int] = {}
        self._alive = array("B")
        self._digests = array("Q")
        self._postings: defaultdict[int, _Postings] = defaultdict(_Postings)
        self._lock = threading.RLock()

    def add(
        self,
        ids: Sequence[str],
        embeddings: Sequence[SparseEmbedding],
        fingerprint: str | None = None,
        texts: Sequence[str] | None = None,
    ) -> None:
        """Add documents, or replace those whose ids are there.

        Args:
            ids: One id for each document; where an id comes twice, the last document counts.
            embeddings: Their sparse vectors.
            fingerprint: The fingerprint of the model that made them; the first one given is kept.
            texts: Their texts, for `holds` to tell whether a text has changed; only hashes are kept.

        Raises:
            ValueError: There are not as many ids or texts as embeddings.
            FingerprintMismatchError: Another model has filled the index; nothing is added.
        """
        if len(ids) != len(embeddings):
            raise ValueError(f"{len(ids)} ids for {len(embeddings)} embeddings: give each embedding one id.")
        digests = [_UNKNOWN] * len(ids) if texts is None else [_digest(text) for text in texts]
        if len(digests) != len(ids):
            raise ValueError(f"{len(digests)} texts for {len(ids)} ids: give each id its text, or none at all.")
        with self._lock:
            self.check_fingerprint(fingerprint)
            self.fingerprint = self.fingerprint or fingerprint
            latest = dict(zip(ids, zip(embeddings, digests, strict=True), strict=True))
            self.delete(latest)
            for document_id, (embedding, digest) in latest.items():
                row = self._rows[document_id] = len(self._ids)
                self._ids.append(document_id)
                self._alive.append(1)
                self._digests.append(digest)
                for token, value in zip(embedding.indices.tolist(), embedding.values.tolist(), strict=True):
                    postings = self._postings[token]
                    postings.rows.append(row)
                    postings.values.append(value)

    def delete(self, ids: Iterable[str]) -> None:
        """Delete documents; ids that are not in the index are ignored."""
        with self._lock:
            for document_id in ids:
                row = self._rows.pop(document_id, None)
                if row is not None:
                    self._alive[row] = 0
            if len(self._ids) > 2 * len(self._rows) + _SPARE_ROWS:
                self._compact()

    def search(self, query: SparseEmbedding, k: int) -> list[tuple[str, float]]:
        """Find the documents with the highest inner product.

        Args:
            query: Any sparse vector of the same model.
            k: The most documents to return.

        Returns:
            (id, score) pairs, best first, equals in the order in which they were added; only scores over 0.

        Raises:
            ValueError: `k` is under 1.
        """
        if k < 1:
            raise ValueError(f"k={k} must be 1 or more.")
        with self._lock:
            scores = np.zeros(len(self._ids))
            for token, weight in zip(query.indices.tolist(), query.values.tolist(), strict=True):
                if token in self._postings:
                    postings = self._postings[token]
                    scores[np.array(postings.rows)] += weight * np.array(postings.values, dtype=np.float64)
            scores *= np.array(self._alive)
            return [(self._ids[row], float(scores[row])) for row in _best(scores, k)]

    def holds(self, document_id: str, text: str) -> bool:
        """Return whether a document is in the index and, as far as is known, was added with this text."""
        with self._lock:
            row = self._rows.get(document_id)
            return row is not None and self._digests[row] in (_UNKNOWN, _digest(text))

    def check_fingerprint(self, fingerprint: str | None) -> None:
        """Refuse a model other than the one that filled the index.

        Raises:
            FingerprintMismatchError: Both fingerprints are known and differ.
        """
        if None not in (self.fingerprint, fingerprint) and self.fingerprint != fingerprint:
            raise FingerprintMismatchError(
                f"This sparse index was filled by a model with the fingerprint {self.fingerprint}; the model given has "
                f"{fingerprint}. Use the model that filled it, or fill a new index."
            )

    def ids(self) -> list[str]:
        """Return the ids of all documents."""
        with self._lock:
            return list(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, document_id: object) -> bool:
        return document_id in self._rows

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one `.npz` file, whole or not at all: a file that is there stays until the new one is complete.

        The new file is written beside it under a fixed hidden name, by one process at a time; what a killed process
        left there is overwritten.
        """
        path = Path(path)
        new = path.with_name(f".{path.name}.part")
        with _alone_in(new) as file:
            try:
                np.savez(file, **self._to_arrays())
                file.flush()
                os.fsync(file.fileno())
                if fcntl is None:
                    file.close()  # Windows renames no open file
                new.replace(path)
            except BaseException:
                new.unlink(missing_ok=True)
                raise

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read an index from the file that `save` wrote; nothing is unpickled.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: The file is not that of a SparseIndex.
        """
        try:
            with Path(path).open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                return cls._from_arrays(arrays)
        except (KeyError, TypeError, ValueError, EOFError, BadZipFile) as error:
            raise ValueError(f"{os.fspath(path)!r} is not the file of a SparseIndex: {error}.") from error

    def __getstate__(self) -> dict[str, Any]:
        return self._to_arrays()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(self._from_arrays(state).__dict__)

    def _to_arrays(self) -> dict[str, Any]:
        with self._lock:
            self._compact()
            header = json.dumps({"fingerprint": self.fingerprint, "ids": self._ids}).encode()
            postings = self._postings.values()
            return {
                "header": np.frombuffer(header, dtype=np.uint8),
                "tokens": np.array(list(self._postings), dtype=np.int64),
                "counts": np.array([len(posting.rows) for posting in postings], dtype=np.int64),
                "digests": np.array(self._digests),
                "rows": np.frombuffer(b"".join(posting.rows.tobytes() for posting in postings), dtype=np.uint32),
                "values": np.frombuffer(b"".join(posting.values.tobytes() for posting in postings), dtype=np.float32),
            }

    @classmethod
    def _from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Self:
        header = json.loads(arrays["header"].tobytes())
        index = cls(header["fingerprint"])
        index._ids = header["ids"]
        index._rows = {document_id: row for row, document_id in enumerate(index._ids)}
        index._alive = array("B", [1]) * len(index._ids)
        index._digests = array("Q", arrays["digests"].tobytes())
        ends = np.cumsum(arrays["counts"])[:-1]
        rows, values = np.split(arrays["rows"], ends), np.split(arrays["values"], ends)
        for token, token_rows, token_values in zip(arrays["tokens"].tolist(), rows, values, strict=False):
            index._postings[token] = _Postings.of(token_rows, token_values)
        return index

    def _compact(self) -> None:
        """Drop the rows of deleted documents."""
        if len(self._ids) == len(self._rows):
            return
        alive = np.array(self._alive, dtype=np.bool_)
        renumbered = np.cumsum(alive) - 1
        for token, postings in list(self._postings.items()):
            rows = np.array(postings.rows)
            kept = alive[rows]
            if kept.any():
                self._postings[token] = _Postings.of(renumbered[rows[kept]], np.array(postings.values)[kept])
            else:
                del self._postings[token]
        self._ids = [document_id for document_id, lives in zip(self._ids, self._alive, strict=True) if lives]
        self._rows = {document_id: row for row, document_id in enumerate(self._ids)}
        self._digests = array("Q", np.array(self._digests)[alive].tobytes())
        self._alive = array("B", [1]) * len(self._ids)


@contextmanager
def _alone_in(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing from its start, once no other thread or process holds it."""
    while True:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "r+b") as file:
            if fcntl is not None:
                fcntl.flock(file, fcntl.LOCK_EX)
                if not _is_file_at(path, file):
                    continue  # its last holder has renamed it
            file.truncate()
            yield file
            return


def _is_file_at(path: Path, file: BinaryIO) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except FileNotFoundError:
        return False


def _digest(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=8).digest()) or 1


def _best(scores: NDArray[np.float64], k: int) -> list[int]:
    """Return the rows of the k highest scores over 0, best first, equals in order."""
    rows = np.flatnonzero(scores > 0)
    if len(rows) > k:
        rows = rows[scores[rows] >= np.partition(scores[rows], -k)[-k]]
    best: list[int] = rows[np.argsort(-scores[rows], kind="stable")][:k].tolist()
    return best
