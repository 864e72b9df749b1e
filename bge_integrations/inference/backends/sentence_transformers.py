"""Pipelines that the faster backends don't know, run by the sentence-transformers library itself."""

import math
from typing import Any

import numpy as np
import torch

from bge_integrations.inference.backends.pytorch import ModuleBackend, dense_rows, finish, table_rows, to_device
from bge_integrations.inference.batch import TokenBatch
from bge_integrations.inference.heads import Dense, Head


class SentenceTransformersBackend(ModuleBackend):
    """The backend of a `SentenceTransformer` or `CrossEncoder`.

    Args:
        model: The loaded pipeline, on its device.
        pad_id: The id of the tokenizer's padding token.
        engine: Why this backend runs it.
        names_pooling: Whether the folder says how it pools; otherwise the library's own pooling is a guess, and the
            head's is taken.
    """

    def __init__(self, model: Any, *, pad_id: int, engine: str, names_pooling: bool = True) -> None:
        super().__init__(model, padded=True, engine=engine)
        self._names_pooling = names_pooling
        self.vocabulary = table_rows(model[0].auto_model)
        self._pad_id = pad_id if pad_id < (self.vocabulary or math.inf) else 0

    def rows(self, model: Any, batch: TokenBatch, head: Head) -> torch.Tensor:
        """Run one forward of the whole pipeline."""
        features = self._features(model, batch, head)
        if isinstance(head, Dense) and not self._names_pooling:
            hidden = model[0](features)["token_embeddings"].flatten(0, 1)
            places = np.flatnonzero(np.arange(batch.max_seqlen) < batch.lengths[:, None])
            return dense_rows(hidden[to_device(places, hidden.device)], batch, head)
        out = model(features)
        rows: torch.Tensor = finish(out["sentence_embedding"], head) if isinstance(head, Dense) else out["scores"]
        return rows.reshape(len(batch), -1)

    def _features(self, model: Any, batch: TokenBatch, head: Head) -> dict[str, Any]:
        ids, mask, types = batch.padded(self._pad_id)
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        features: dict[str, Any] = {
            name: torch.from_numpy(array).to(model.device) for name, array in arrays.items() if array is not None
        }
        if isinstance(head, Dense) and head.prompt_length:
            features["prompt_length"] = head.prompt_length
        return features
