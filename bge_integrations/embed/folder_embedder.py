"""An embedder that follows a folder's files exactly as sentence-transformers does, whatever the catalogue says."""

from dataclasses import replace

from bge_integrations.embed.embedder import BgeEmbedder
from bge_integrations.embed.recipe import QueryFrame, Recipe
from bge_integrations.runtime.cache import ModelCache
from bge_integrations.runtime.folder import Folder
from bge_integrations.runtime.source import Resolved
from bge_integrations.runtime.user import BackendName, OnTruncate
from bge_integrations.types import Pooling


class FolderEmbedder(BgeEmbedder):
    """What `SentenceTransformer(folder).encode(text)` computes, for queries and documents alike.

    Pooling (the mean where there is no modules.json), normalisation, max length and prompts come from the folder. Made
    for code that must give the vectors of an existing index.

    Args:
        model: As `BgeEmbedder`, and so the others.
        prompt: Text before every text; None takes the folder's prompt called `prompt_name`, else its default one.
        prompt_name: Name of one of the folder's prompts.
    """

    def __init__(
        self,
        model: str,
        *,
        prompt: str | None = None,
        prompt_name: str | None = None,
        on_truncate: OnTruncate = "warn",
        backend: BackendName = "auto",
        device: object = None,
        dtype: object = None,
        revision: str | None = None,
        cache: ModelCache | None = None,
        cache_folder: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(
            model, on_truncate=on_truncate, backend=backend, device=device, dtype=dtype, revision=revision,
            cache=cache, cache_folder=cache_folder, token=token, local_files_only=local_files_only,
            trust_remote_code=trust_remote_code,
        )  # fmt: skip
        self.prompt = prompt
        self.prompt_name = prompt_name
        self._source = replace(self._source, pooling_optional=True)

    def _recipe(self, resolved: Resolved) -> Recipe:
        folder = resolved.folder
        prefix = self._prompt(folder)
        return Recipe(
            pooling=folder.pooling or Pooling.MEAN,
            normalize=folder.normalize,
            max_length=folder.max_length,
            dim=min(folder.truncate_dim or folder.dim, folder.dim),
            query=QueryFrame(prefix),
            document_prefix=prefix,
            truncate_dim=folder.truncate_dim,
            cut_last=True,
        )

    def _prompt(self, folder: Folder) -> str:
        if self.prompt is not None:
            return self.prompt
        if self.prompt_name is None:
            return folder.default_prompt
        if self.prompt_name not in folder.prompts:
            names = ", ".join(folder.prompts) or "none"
            raise ValueError(f'prompt_name="{self.prompt_name}" is not a prompt of {self.model}. It has: {names}.')
        return folder.prompts[self.prompt_name]
