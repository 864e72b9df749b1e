"""The public names are frozen, each is there, and importing them costs nothing."""

import subprocess
import sys

import pytest

import bge_integrations

HEAVY = {"torch", "transformers", "sentence_transformers", "langchain_core", "llama_index", "chromadb"}


def modules_after(code: str) -> set[str]:
    """Give the top-level modules that a new Python holds after running the code."""
    report = "\nimport sys\nsys.stdout.write(' '.join({name.split('.')[0] for name in sys.modules}))"
    run = subprocess.run([sys.executable, "-c", code + report], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_public_names():
    assert bge_integrations.__all__ == [
        "BgeEmbedder",
        "BgeError",
        "BgeM3Embedder",
        "BgeReranker",
        "ClosedError",
        "DeviceLostError",
        "FingerprintMismatchError",
        "ForkedProcessError",
        "InputTooLongError",
        "M3Embeddings",
        "MissingExtraError",
        "MissingWeightsError",
        "ModelCache",
        "ModelSpec",
        "NonFiniteError",
        "NotAllowedError",
        "OverBudgetError",
        "OverloadedError",
        "Pooling",
        "RerankResult",
        "ServerUnavailableError",
        "SparseEmbedding",
        "SparseIndex",
        "UnknownModelError",
        "UnsupportedModelError",
        "WrongKindError",
        "__version__",
        "default_cache",
        "get_spec",
        "list_models",
    ]


@pytest.mark.parametrize("name", bge_integrations.__all__)
def test_each_name_is_there(name):
    assert getattr(bge_integrations, name) is not None
    assert name in dir(bge_integrations)


def test_every_error_is_public():
    errors = bge_integrations.errors
    for name, value in vars(errors).items():
        if isinstance(value, type) and issubclass(value, errors.BgeError):
            assert name in bge_integrations.__all__


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'BgeEmbeder'"):
        bge_integrations.BgeEmbeder  # noqa: B018


def test_importing_costs_nothing():
    assert modules_after("import bge_integrations").isdisjoint({*HEAVY, "numpy"})


def test_making_objects_loads_no_model_library():
    code = "from bge_integrations import *; BgeEmbedder('BAAI/bge-m3'); BgeReranker('BAAI/bge-reranker-base')"
    assert modules_after(code).isdisjoint(HEAVY)


def test_the_command_line_starts_light():
    assert modules_after("import bge_integrations.cli.app").isdisjoint(HEAVY)


def test_the_check_of_imports_can_fail():
    assert modules_after("import chromadb") & HEAVY
