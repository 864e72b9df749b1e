"""How far a warm call goes through the package: few functions, few files, and not back and forth between them."""

import json
import subprocess
import sys

import pytest

SCRIPT = '''
import json, sys, threading, time

calls = None

def record(frame, event, _):
    code = frame.f_code
    if event == "call" and calls is not None and code.co_filename.startswith(package):
        calls.append((code.co_filename, code.co_qualname))

threading.setprofile(record)
sys.setprofile(record)
import bge_integrations
package = bge_integrations.__path__[0]
from langchain_core.documents import Document
from bge_integrations.langchain import BgeEmbeddings, BgeRerank

where = {"device": "cpu", "backend": "torch"}
embeddings = BgeEmbeddings(model="bge-integrations/mini-embedder-en", **where)
reranker = BgeRerank(model="bge-integrations/mini-reranker-en", **where)
documents = [Document("Paris is a city."), Document("Pandas eat bamboo.")]

def idle():
    """Waits until the model's worker has nothing left to do after its answer."""
    seen = -1
    while seen != len(calls or ()):
        seen = len(calls or ())
        time.sleep(0.2)

def way(call):
    global calls
    call()
    idle()
    calls = []
    call()
    idle()
    way, calls = calls, None
    files = [file for file, _ in way]
    return len(set(way)), len(set(files)), sum(a != b for a, b in zip(files, files[1:]))

print(json.dumps({
    "embed_query": way(lambda: embeddings.embed_query("what do pandas eat?")),
    "rerank": way(lambda: reranker.compress_documents(documents, "what do pandas eat?")),
}))
'''


@pytest.fixture(scope="module")
def ways():
    run = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=110, check=True)
    return json.loads(run.stdout)


@pytest.mark.parametrize(
    ("call", "functions", "files", "switches"), [("embed_query", 60, 12, 38), ("rerank", 70, 12, 45)]
)
def test_a_warm_call_stays_short(call, functions, files, switches, ways):
    assert all(had <= allowed for had, allowed in zip(ways[call], (functions, files, switches), strict=True)), ways
