"""An embedder that follows a folder's files exactly as sentence-transformers does, whatever the catalogue says."""

from dataclasses import dataclass
from typing import ClassVar

from bge_integrations.embed.embedder import BgeEmbedder
from bge_integrations.embed.prompts import FolderOptions, Side

_OF_THE_FOLDER = ("query_instruction", "document_instruction", "task", "examples", "normalize", "truncate_dim", "like")


@dataclass(repr=False, eq=False, kw_only=True)
class FolderEmbedder(BgeEmbedder):
    """What `SentenceTransformer(folder).encode(text)` computes, for queries and documents alike.

    Pooling (the mean where there is no modules.json), normalisation, max length and prompts come from the folder. Made
    for code that must give the vectors of an existing index.

    Args:
        model: As `BgeEmbedder`, and so the others, but for those that the folder decides: instructions, `task`,
            `examples`, `normalize`, `truncate_dim`, `like`.
        prompt: Text before every text; None takes the folder's prompt called `prompt_name`, else its default one.
        prompt_name: Name of one of the folder's prompts.

    Raises:
        ValueError: An argument that the folder decides is given.
    """

    pooling_optional: ClassVar[bool] = True

    prompt: str | None = None
    prompt_name: str | None = None

    def __post_init__(self) -> None:
        if given := [f"{name}=" for name in _OF_THE_FOLDER if getattr(self, name) is not None]:
            raise ValueError(
                f"{', '.join(given)} can't be given: the files of {self.model} decide that. Use BgeEmbedder to choose."
            )
        super().__post_init__()

    def _side(self, side: Side) -> FolderOptions:  # noqa: ARG002  both sides get the same prompt
        return FolderOptions(prompt=self.prompt, prompt_name=self.prompt_name, max_length=self.max_length)
