"""The stand-in for the old class's `client`, a `SentenceTransformer`, for code that still uses it."""

from collections.abc import Iterable, Mapping
from typing import Any

from bge_integrations.embed.embedder import FolderEmbedder
from bge_integrations.langchain.huggingface_kwargs import embedder_arguments, finish

_LEFT_OUT = (
    "HuggingFaceBgeEmbeddings.client is not a whole SentenceTransformer, as the model is shared. It supports encode, "
    "tokenize, tokenizer, device, max_seq_length and get_sentence_embedding_dimension. For another limit use "
    "BgeEmbeddings(max_length=...)."
)


class Client:
    """The part of `SentenceTransformer` that tokenizes and encodes texts, with the shared model.

    Args:
        model: The arguments of `FolderEmbedder` that say where the model is.
        model_kwargs: The old class's `model_kwargs`.
    """

    __slots__ = ("_model", "_model_kwargs")

    def __init__(self, model: Mapping[str, Any], model_kwargs: Mapping[str, Any]) -> None:
        self._model = model
        self._model_kwargs = model_kwargs

    def encode(self, sentences: str | Iterable[str], **encode_kwargs: Any) -> Any:
        """Embed texts as they are, without the old class's instructions.

        Args:
            sentences: One text or several.
            encode_kwargs: Arguments of `SentenceTransformer.encode`, such as `normalize_embeddings` or `prompt_name`.

        Returns:
            The same as from `SentenceTransformer.encode`: an array (n, dim), or (dim,) for one text; with
            `convert_to_tensor` a tensor, with `convert_to_numpy=False` a list of tensors.

        Raises:
            ValueError: An argument is not supported; the message says what to do.
        """
        embedder = self._embedder(encode_kwargs)
        texts = [sentences] if isinstance(sentences, str) else sentences
        vectors = embedder.encode_documents(texts, bool(encode_kwargs.get("show_progress_bar")))
        finished: Any = finish(self._model_kwargs, encode_kwargs).applied(vectors)
        if encode_kwargs.get("convert_to_tensor") or not encode_kwargs.get("convert_to_numpy", True):
            import torch

            finished = torch.from_numpy(finished)
            if not encode_kwargs.get("convert_to_tensor"):
                finished = list(finished)
        return finished[0] if isinstance(sentences, str) else finished

    def tokenize(self, texts: list[str]) -> dict[str, Any]:
        """Return the model's input for texts, cut to `max_seq_length` and padded: tensors by name."""
        limit = self.max_seq_length
        features = self.tokenizer(list(texts), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        return dict(features)

    @property
    def tokenizer(self) -> Any:
        """The model's tokenizer of the transformers library, a new one each time."""
        from transformers import AutoTokenizer

        embedder = self._embedder({})
        path = embedder._resolved().folder.tokenizer_path  # noqa: SLF001  no part of the core's public face
        return AutoTokenizer.from_pretrained(path, trust_remote_code=embedder.trust_remote_code)

    @property
    def device(self) -> Any:
        """The `torch.device` that the model runs on."""
        import torch

        return torch.device(str(self._embedder({}).describe()["device"]))

    @property
    def max_seq_length(self) -> int:
        """The number of tokens after which a text is cut."""
        length: Any = self._embedder({}).describe()["max_length"]
        return int(length)

    @max_seq_length.setter
    def max_seq_length(self, length: int) -> None:
        raise AttributeError(_LEFT_OUT)

    def get_max_seq_length(self) -> int:
        """Return the number of tokens after which a text is cut."""
        return self.max_seq_length

    def get_sentence_embedding_dimension(self) -> int:
        """Return the length of a vector."""
        dim = self._embedder({}).dim
        return min(dim, self._model_kwargs.get("truncate_dim") or dim)

    get_embedding_dimension = get_sentence_embedding_dimension

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{name!r}: {_LEFT_OUT}")

    def _embedder(self, encode_kwargs: Mapping[str, Any]) -> FolderEmbedder:
        return FolderEmbedder(**self._model, **embedder_arguments(self._model_kwargs, encode_kwargs))
