"""Uses the package that is installed, whichever that is: python tests/smoke.py. Needs the extra `all`."""

import importlib
import pkgutil
from importlib.metadata import metadata

import bge_integrations
from bge_integrations import BgeEmbedder, BgeReranker, get_spec, list_models

QUERY = "what do pandas eat?"
BAMBOO = "Giant pandas eat bamboo."
BERLIN = "Berlin is the capital of Germany."


def import_every_module() -> int:
    names = [module.name for module in pkgutil.walk_packages(bge_integrations.__path__, "bge_integrations.")]
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    return len(names)


def use_the_pair() -> None:
    embedder = BgeEmbedder("bge-integrations/mini-embedder-en")
    near, far = embedder.encode_documents([BAMBOO, BERLIN]) @ embedder.encode_queries([QUERY])[0]
    assert near > far
    best = BgeReranker("bge-integrations/mini-reranker-en").rerank(QUERY, [BERLIN, BAMBOO])[0]
    assert best.index == 1


if __name__ == "__main__":
    modules = import_every_module()
    use_the_pair()
    assert metadata("bge-integrations")["Version"] == bge_integrations.__version__
    assert all(get_spec(row.id) is row for row in list_models())
    print(f"{modules} modules, version {bge_integrations.__version__}, {bge_integrations.__file__}")
