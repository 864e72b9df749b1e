"""Pipelines that the faster backends don't know, run by the sentence-transformers library itself."""

import math
from typing import Any

import torch

from bge_integrations.inference.backends.pytorch import ModuleBackend, finish, table_rows
from bge_integrations.inference.batch import TokenBatch
from bge_integrations.inference.heads import Dense, Head


class SentenceTransformersBackend(ModuleBackend):
    """The backend of a `SentenceTransformer` or `CrossEncoder`.

    Args:
        model: The loaded pipeline, on its device.
        pad_id: The id of the tokenizer's padding token.
        engine: Why this backend runs it.
    """

    def __init__(self, model: Any, *, pad_id: int, engine: str) -> None:
        super().__init__(model, padded=True, engine=engine)
        self.vocabulary = table_rows(model[0].auto_model)
        self._pad_id = pad_id if pad_id < (self.vocabulary or math.inf) else 0

    def rows(self, model: Any, batch: TokenBatch, head: Head) -> torch.Tensor:
        """Run one forward of the whole pipeline."""
        out = model(self._features(model, batch, head))
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
