"""A process that embeds and reranks on OpenVINO imports neither torch nor transformers, and shares its weights."""

import json
import os
import subprocess
import sys

import psutil
import pytest
import tiny

HEAVY = ("torch", "transformers", "sentence_transformers", "huggingface_hub", "pandas", "scipy", "sklearn")
EMBEDS = "from bge_integrations import BgeEmbedder; BgeEmbedder(sys.argv[1]).encode_queries(['a'])"
LINES = tiny.TEXT.strip().splitlines()[:4]


def run(code, *arguments):
    """Run code in a fresh process; return what it prints, and which heavy libraries it has imported."""
    told = f"import sys\n{code}\nimport json\nprint(json.dumps([name for name in {HEAVY} if name in sys.modules]))"
    done = subprocess.run([sys.executable, "-c", told, *arguments], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    *printed, imported = done.stdout.splitlines()
    assert done.stderr == ""
    return printed, json.loads(imported)


@pytest.mark.parametrize(
    "code",
    [
        EMBEDS,
        "from bge_integrations import BgeReranker; BgeReranker(sys.argv[2]).rerank('a', ['b', 'c'])",
        "from bge_integrations import BgeEmbedder; e = BgeEmbedder(sys.argv[1]); e.describe(); e.fingerprint",
        "from bge_integrations.langchain import BgeEmbeddings; BgeEmbeddings(model=sys.argv[1]).embed_query('a')",
        "from bge_integrations.chroma import BgeEmbeddingFunction; BgeEmbeddingFunction(model=sys.argv[1])(['a'])",
    ],
)
def test_the_pair_needs_no_torch(code):
    assert run(code, "bge-integrations/mini-embedder-en", "bge-integrations/mini-reranker-en")[1] == []


@pytest.mark.parametrize(
    ("code", "unneeded"),
    [
        ("from bge_integrations.langchain import BgeEmbeddings", "langchain_core.vectorstores"),
        (EMBEDS, "asyncio"),
        (EMBEDS, "openvino.tools.ovc"),
    ],
)
def test_what_is_not_used_is_not_imported(code, unneeded):
    printed, _ = run(f"{code}\nprint({unneeded!r} in sys.modules)", "bge-integrations/mini-embedder-en")
    assert printed == ["False"]


def test_openvinos_converter_is_there_for_those_who_call_it():
    code = (
        f"{EMBEDS}\n"
        "import openvino\n"
        "try: openvino.convert_model('nowhere.onnx')\n"
        "except Exception as error: print('nowhere.onnx' in str(error))"
    )
    assert run(code, "bge-integrations/mini-embedder-en")[0] == ["True"]


def test_a_folder_needs_no_torch_either(bert_embedder, bert_reranker):
    code = (
        "from bge_integrations import BgeEmbedder, BgeReranker\n"
        "embedder = BgeEmbedder(sys.argv[1], backend='openvino')\n"
        "reranker = BgeReranker(sys.argv[2], backend='openvino')\n"
        "print(embedder.encode_documents(sys.argv[3:]).shape, len(reranker.rerank('a', sys.argv[3:])))"
    )
    printed, imported = run(code, str(bert_embedder), str(bert_reranker), *LINES)
    assert printed == ["(4, 32) 4"]
    assert imported == []


def test_a_forked_child_computes_without_torch(bert_embedder):
    code = (
        "import os\n"
        "from bge_integrations import BgeEmbedder\n"
        "embedder = BgeEmbedder(sys.argv[1], backend='openvino')\n"
        "expected = embedder.encode_queries(['a'])\n"
        "if os.fork() == 0:\n"
        "    same = (embedder.encode_queries(['a']) == expected).all()\n"
        "    os._exit(0 if same and 'torch' not in sys.modules else 1)\n"
        "print(os.waitstatus_to_exitcode(os.wait()[1]))"
    )
    assert run(code, str(bert_embedder)) == (["0"], [])


def test_processes_share_the_weights():
    code = (
        "import sys; from bge_integrations import BgeEmbedder\n"
        "BgeEmbedder('bge-integrations/mini-embedder-en').encode_queries(['a']); print('ready', flush=True)\n"
        "sys.stdin.read()"
    )

    def started():
        process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ
        )
        assert process.stdout.readline() == "ready\n"
        return process

    with started() as warmer:  # it makes the graph
        warmer.communicate()
    with started() as first, started() as second:
        memory = [psutil.Process(process.pid).memory_full_info() for process in (first, second)]
        second.communicate()
        first.communicate()
    assert memory[1].uss < 0.6 * memory[0].rss
