"""Chroma: embedding functions, dense and sparse, with a document path and a query path.

Example:
    ```python
    import chromadb
    from bge_integrations.chroma import BgeEmbeddingFunction

    client = chromadb.PersistentClient("store")
    collection = client.create_collection("notes", embedding_function=BgeEmbeddingFunction("BAAI/bge-small-en-v1.5"))
    collection.add(ids=["1"], documents=["Pandas eat bamboo."])
    collection.query(query_texts=["what do pandas eat?"])
    ```

Importing this module registers the functions as "bge_integrations" and "bge_integrations_m3_sparse", so that a
collection that is opened again finds them.
"""

from importlib.util import find_spec

from bge_integrations.errors import MissingExtraError

if find_spec("chromadb") is None:
    raise MissingExtraError(
        'bge_integrations.chroma needs chromadb. Install it: pip install "bge_integrations[chroma]"'
    )

from bge_integrations.chroma.dense import BgeEmbeddingFunction
from bge_integrations.chroma.sparse import BgeM3SparseEmbeddingFunction

__all__ = ["BgeEmbeddingFunction", "BgeM3SparseEmbeddingFunction"]
