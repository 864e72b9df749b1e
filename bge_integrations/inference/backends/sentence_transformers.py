"""Whatever pipeline the fast paths don't know, run through the sentence-transformers library itself."""

import copy
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bge_integrations.inference.backends.base import DeviceMemoryError
from bge_integrations.inference.backends.pytorch import finish
from bge_integrations.inference.batch import TokenBatch
from bge_integrations.inference.heads import Dense, Head


class SentenceTransformersBackend:
    """A `SentenceTransformer` or `CrossEncoder` in evaluation mode.

    Args:
        model: The loaded pipeline, on its device.
        pad_id: The tokenizer's padding token.
        engine: Why this backend runs it.
    """

    padded = True

    def __init__(self, model: Any, *, pad_id: int, engine: str) -> None:
        self._model = model.eval()
        self._pad_id = pad_id
        self.engine = engine
        self.nbytes = sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))

    def run(self, batch: TokenBatch, head: Head, *, exact: bool = False) -> NDArray[np.float32]:
        """One forward; see `Backend.run`."""
        try:
            model = copy.deepcopy(self._model).float() if exact else self._model
            with torch.inference_mode():
                out = model(self._features(model, batch, head))
                rows = finish(out["sentence_embedding"], head) if isinstance(head, Dense) else out["scores"].float()
                return rows.reshape(len(batch), -1).cpu().numpy()
        except torch.OutOfMemoryError as error:
            message = str(error)
        # Outside the handler, whose traceback would keep the forward's tensors alive.
        torch.cuda.empty_cache()
        raise DeviceMemoryError(message)

    def close(self) -> None:
        """Frees the weights."""
        on_cuda = self._model is not None and self._model.device.type == "cuda"
        self._model = None
        if on_cuda:
            torch.cuda.empty_cache()

    def _features(self, model: Any, batch: TokenBatch, head: Head) -> dict[str, Any]:
        ids, mask, types = batch.padded(self._pad_id)
        arrays = {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}
        features: dict[str, Any] = {
            name: torch.from_numpy(array).to(model.device) for name, array in arrays.items() if array is not None
        }
        if isinstance(head, Dense) and head.prompt_length:
            features["prompt_length"] = head.prompt_length
        return features
