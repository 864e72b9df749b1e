"""The models that a server answers for, and how a request's call reaches them."""

import asyncio
import re
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from fastapi import Depends
from fastapi import Request as HttpRequest

from bge_integrations.embed.embedder import BgeEmbedder, Embedder
from bge_integrations.embed.m3 import BgeM3Embedder
from bge_integrations.embed.prompts import Side
from bge_integrations.errors import UnknownModelError, WrongKindError
from bge_integrations.inference.batch import Output
from bge_integrations.process import awaited
from bge_integrations.rerank.reranker import BgeReranker
from bge_integrations.runtime.cache import ModelCache
from bge_integrations.runtime.locate import names_of, row_of
from bge_integrations.runtime.replicas import run
from bge_integrations.runtime.request import Kind, ModelSource, Options, Request, TextOptions
from bge_integrations.runtime.tokenizer import load_tokenizer
from bge_integrations.serve.errors import ClientGoneError, TooManyTextsError
from bge_integrations.serve.replies import is_query
from bge_integrations.types import RerankResult

if TYPE_CHECKING:
    from bge_integrations.serve.own import ClientModel

User = BgeEmbedder | BgeReranker

SIDES: dict[str, Side] = {"-query": "query", "-passage": "document"}
"""Endings of a model's name in a request that choose the side, as on NVIDIA's servers."""

_MOST_MADE = 256
"""Most variants of models that are kept for requests to come."""
_SURROGATE = re.compile("[\ud800-\udfff]")


class Served:
    """The models of one server.

    Args:
        models: What to serve: ids, folders, or embedders and rerankers, whose arguments say how and where they run.
        cache: The cache that holds the weights.
        max_texts: The most texts, or passages, of one request.
        any_model: Serve whatever model a client of the package names, for a server that only its own user can reach.

    Raises:
        UnknownModelError: A model can't be found.
        UnsupportedModelError: A model can't be run.
        ValueError: Two models have one name.
    """

    def __init__(
        self, models: Iterable[str | User], cache: ModelCache, *, max_texts: int, any_model: bool = False
    ) -> None:
        self.cache = cache
        self.max_texts = max_texts
        self.any_model = any_model
        self.started = int(time.time())
        self.users: dict[str, User] = {}
        self._names: dict[str, User] = {}
        self._made: dict[Hashable, Any] = {}
        for model in models:
            self.add(model)

    def add(self, model: str | User) -> User:
        """Add a model once its files are found; no weights are loaded."""
        user = replace(
            core_of(model, {"cache": self.cache}) if isinstance(model, str) else model,
            cache=self.cache,
            on_truncate="ignore",
        )
        user.describe()
        if user.model in self.users:
            raise ValueError(f"{user.model} is given twice. A server has one model of a name.")
        self.users[user.model] = user
        row = row_of(user.model)
        for name in (*names_of(user.model), *(row.aliases if row else ())):
            self._names.setdefault(name, user)
        return user

    def find(self, name: str | None, kind: Kind) -> User:
        """Return the model of a name or alias, or the first of its kind where a request names none.

        Raises:
            UnknownModelError: The server has none of that name.
            WrongKindError: It is of the other kind.
        """
        user = self._names.get(name) if name else next((u for u in self.users.values() if u.kind == kind), None)
        if user is None:
            served = ", ".join(self.users) or "none"
            raise UnknownModelError(f"This server has no {kind} {name or ''!r}. Its models: {served}.")
        if user.kind != kind:
            raise WrongKindError(f"{user.model} is no {kind}; this request needs one.")
        return user

    def embedder(
        self, name: str | None, *, dimensions: int | None = None, normalize: bool | None = None
    ) -> BgeEmbedder:
        """Return an embedder of the model, with other arguments where a request asks for them."""
        asked = {"truncate_dim": dimensions, "normalize": normalize}
        changes = {name: value for name, value in asked.items() if value is not None}
        user: Any = self.find(name, "embedder")
        embedder: BgeEmbedder = (
            self._once((user, *changes.items()), lambda: replace(user, **changes)) if changes else user
        )
        return embedder

    def m3(self, name: str | None, outputs: Sequence[str]) -> BgeM3Embedder:
        """Return an embedder of the model that gives these outputs of bge-m3."""
        embedder = self.embedder(name)
        m3: BgeM3Embedder = self._once((embedder, tuple(outputs)), lambda: _with_outputs(embedder, tuple(outputs)))
        return m3

    def reranker(self, name: str | None) -> BgeReranker:
        """Return the reranker of the model."""
        reranker = self.find(name, "reranker")
        assert isinstance(reranker, BgeReranker)  # noqa: S101  for mypy
        return reranker

    def first(self) -> User:
        """Return the first model.

        Raises:
            UnknownModelError: The server was started with none.
        """
        if not self.users:
            raise UnknownModelError("This server was started without a model.")
        return next(iter(self.users.values()))

    def of_client(self, asked: "ClientModel") -> User:
        """Return the model that a client of `cache=` names, once it is known that it means the same model.

        Raises:
            UnknownModelError: The server has none of that name.
            ValueError: It runs another revision, dtype or catalogue row than the client asks for.
        """
        if self.any_model:
            named = (asked.revision, asked.dtype, asked.like, asked.cache_folder, asked.local_files_only)
            model = asked.path or asked.model
            opened: User = self._once(
                (asked.kind, model, *named), lambda: _opened(self.cache, asked.kind, model, *named)
            )
            return opened
        name = asked.model if asked.model in self._names else asked.path or asked.model
        user = self.find(name, asked.kind)
        source = user._sources[0]  # noqa: SLF001
        for what in ("revision", "dtype", "like"):
            wanted = getattr(asked, what)
            if wanted is not None and wanted != getattr(source, what):
                key = self.cache.resolve(source)
                if wanted not in (key.key.revision, key.key.dtype, key.spec.id if key.spec else None):
                    raise ValueError(
                        f"{what}={wanted!r}: this server was started with {what}={getattr(source, what)!r} for "
                        f"{user.model}, and a client can't change that."
                    )
        return user

    async def embed(
        self,
        http: HttpRequest,
        model: str | None,
        texts: Sequence[str],
        input_type: str | None,
        *,
        dimensions: int | None = None,
        normalize: bool | None = None,
        cut: bool = False,
    ) -> Output:
        """Embed the texts of a request; a text over the limit is cut, or refused.

        Args:
            http: The HTTP request.
            model: The model's name, which may end in a side.
            texts: The texts.
            input_type: The side by any protocol's name for it; None takes that of the model's name, else documents.
            dimensions: Leading numbers to keep; None keeps all.
            normalize: Scale vectors to length 1; None does what the model does.
            cut: Cut texts over the limit instead of refusing them.
        """
        name, side = self._side_of(model, input_type)
        embedder = self.embedder(name, dimensions=dimensions, normalize=normalize)
        return await self._embed(http, embedder, side, texts, cut=cut)

    async def embed_m3(
        self,
        http: HttpRequest,
        model: str | None,
        texts: Sequence[str],
        input_type: str | None,
        outputs: tuple[str, ...],
        *,
        cut: bool,
    ) -> Output:
        """Compute outputs of bge-m3 as `embed` computes vectors."""
        name, side = self._side_of(model, input_type)
        return await self._embed(http, self.m3(name, outputs), side, texts, cut=cut)

    async def rerank(
        self,
        http: HttpRequest,
        model: str | None,
        query: str,
        texts: Sequence[str],
        *,
        top_n: int | None = None,
        document_max_length: int | None = None,
        cut: bool = True,
    ) -> tuple[list[RerankResult], int]:
        """Order texts by their relevance to a query; return the results, best first, and the tokens computed."""
        reranker = self.reranker(model)
        options = replace(reranker._options, document_max_length=document_max_length)  # noqa: SLF001
        pairs = [(query, text) for text in texts]
        output = await self.compute(http, reranker, options, pairs, refuse_long=not cut)
        logits = output.rows[:, -1].astype(np.float64)
        return reranker._ranked(pairs, logits, top_n), output.tokens  # noqa: SLF001

    def tokenizing(self, model: str | None, texts: Sequence[str], input_type: str | None) -> tuple[list[str], Any]:
        """Return texts as the model reads them, and its tokenizer, which is loaded at first use.

        Args:
            model: The model's name; None takes the server's first one.
            texts: The texts.
            input_type: The side whose instruction comes before each text; None adds nothing.

        Raises:
            UnknownModelError: The server has none of that name.
            ValueError: A text is not valid Unicode; the message has its index.
        """
        self._check_number(texts)
        for index, text in enumerate(texts):
            if _SURROGATE.search(text):
                raise ValueError(f"Text {index} holds a lone surrogate, so it is not valid Unicode.")
        user = (self._names.get(model) or self.find(model, "embedder")) if model else self.first()
        if input_type and isinstance(user, BgeEmbedder):
            side: Side = "query" if is_query(input_type) else "document"
            template = str(user.describe()[side])
            texts = [template.replace("{text}", text) for text in texts]
        return list(texts), self._once((user, "tokenizer"), lambda: _tokenizer(self.cache, user))

    async def describe(self, user: User) -> dict[str, Any]:
        """Return the settings of a model."""
        return await asyncio.to_thread(user.describe)

    async def described(self, asked: "ClientModel", options: Options) -> dict[str, Any]:
        """Return the settings of a model with a client's options."""
        return await asyncio.to_thread(self.cache.describe, self._source(asked), options)

    async def fingerprint(self, asked: "ClientModel", options: TextOptions) -> str:
        """Return the fingerprint of a model with a client's options."""
        return await asyncio.to_thread(self.cache.fingerprint, self._source(asked), options)

    async def compute(
        self,
        http: HttpRequest,
        user: Embedder[Any] | BgeReranker,
        options: Options,
        items: Sequence[Any],
        *,
        pooling_optional: bool = False,
        max_batch_tokens: int | None = None,
        refuse_long: bool = False,
        first: int = 0,
        patient: bool = False,
    ) -> Output:
        """Compute a request's call; a client that goes away cancels it.

        Args:
            http: The HTTP request, whose body has been read.
            user: The embedder or reranker.
            options: How the items are computed.
            items: Texts or pairs.
            pooling_optional: As in `ModelSource`.
            max_batch_tokens: As in the runtime's `Request`, like the following ones.
            refuse_long: Refuse a text over the limit.
            first: Index of the first item, for messages.
            patient: Wait for admission where too many calls wait.

        Raises:
            TooManyTextsError: There are more items than the server takes.
            OverloadedError: Too many calls wait.
            ClientGoneError: The client went away.
        """
        self._check_number(items)
        sources = [replace(source, pooling_optional=pooling_optional) for source in user._sources]  # noqa: SLF001
        call = Request(
            source=sources[0], options=options, items=items, max_batch_tokens=max_batch_tokens,
            refuse_long=refuse_long, first=first, patient=patient,
        )  # fmt: skip
        future = run(call, sources, self.cache)
        watching = asyncio.ensure_future(_cancel_when_gone(http, future))
        try:
            return await awaited(future)
        except CancelledError:
            raise ClientGoneError("The client went away.") from None
        finally:
            watching.cancel()

    async def _embed(
        self, http: HttpRequest, embedder: Embedder[Any], side: Side, texts: Sequence[str], *, cut: bool
    ) -> Output:
        options = embedder._options[side]  # noqa: SLF001
        return await self.compute(http, embedder, options, texts, refuse_long=not cut)

    def _once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Return what has been made for a key, or make it; requests bring keys, so their number is limited."""
        made = self._made.get(key)
        if made is None:
            if len(self._made) >= _MOST_MADE:
                self._made.clear()
            made = self._made[key] = make()
        return made

    def _check_number(self, items: Sequence[Any]) -> None:
        if len(items) > self.max_texts:
            raise TooManyTextsError(
                f"{len(items)} texts are more than the {self.max_texts} of one request. Send fewer."
            )

    def _side_of(self, model: str | None, input_type: str | None) -> tuple[str | None, Side]:
        """Return a model's name without an ending that chooses the side, and the side."""
        named: Side = "document"
        for ending, side in SIDES.items():
            if model and model not in self._names and model.endswith(ending):
                model, named = model.removesuffix(ending), side
        if input_type is None:
            return model, named
        return model, "query" if is_query(input_type) else "document"

    def _source(self, asked: "ClientModel") -> ModelSource:
        user = self.of_client(asked)
        return replace(user._sources[0], pooling_optional=asked.pooling_optional)  # noqa: SLF001


def core_of(model: str, arguments: Mapping[str, Any] | None = None) -> User:
    """Return an embedder or a reranker of a model, whichever its files say that it is; this may download them.

    Args:
        model: An id or a folder.
        arguments: Arguments that both kinds take.
    """
    try:
        embedder = BgeEmbedder(model, **(arguments or {}))
        embedder.describe()
    except WrongKindError:
        return BgeReranker(model, **(arguments or {}))
    return embedder


async def _cancel_when_gone(http: HttpRequest, future: "Future[Output]") -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
    future.cancel()


def _tokenizer(cache: ModelCache, user: User) -> Any:
    tokenizer = load_tokenizer(cache.resolve(user._sources[0])).fast  # noqa: SLF001
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _with_outputs(embedder: BgeEmbedder, outputs: tuple[str, ...]) -> BgeM3Embedder:
    shared = {field.name: getattr(embedder, field.name) for field in fields(BgeM3Embedder) if field.name != "outputs"}
    return BgeM3Embedder(**shared, outputs=outputs)


def _opened(cache: ModelCache, kind: Kind, model: str, *named: Any) -> User:
    names = ("revision", "dtype", "like", "cache_folder", "local_files_only")
    make = BgeEmbedder if kind == "embedder" else BgeReranker
    return make(model, cache=cache, on_truncate="ignore", **dict(zip(names, named, strict=True)))


def served_by(http: HttpRequest) -> Served:
    """Return the models of the application that a request came to."""
    served: Served = http.app.state.served
    return served


async def _served(http: HttpRequest) -> Served:
    return served_by(http)


Serving = Annotated[Served, Depends(_served)]
"""The models, as a parameter of a path's function."""
