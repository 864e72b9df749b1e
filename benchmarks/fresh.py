"""A fresh process, as a command line or a serverless function is one: `python -m benchmarks.fresh`.

It measures the seconds from the start of the process to the first vector, and its memory then, for the packaged model
by each library. The rows of a second process say what one more costs while the first one lives.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from benchmarks.harness import Measure, measure, measure_table
from benchmarks.peers import PACKAGES

RESULTS = Path(__file__).parent
MODEL = "bge-integrations/mini-embedder-en"
TEXT = "how do I wrap a paragraph to a given width?"
PROGRAMS = {
    "bge_integrations": "from bge_integrations import BgeEmbedder\nBgeEmbedder(model).encode_queries([text])",
    "bge_integrations.langchain": (
        "from bge_integrations.langchain import BgeEmbeddings\nBgeEmbeddings(model=model).embed_query(text)"
    ),
    "fastembed": """
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType
TextEmbedding.add_custom_model(
    model="pair", pooling=PoolingType.CLS, normalization=True, sources=ModelSource(hf="no/where"), dim=384,
    model_file="onnx/model.onnx",
)
next(iter(TextEmbedding("pair", specific_model_path=exported).embed([text])))""",
    "langchain-huggingface": (
        "from langchain_huggingface import HuggingFaceEmbeddings\n"
        "HuggingFaceEmbeddings(model_name=folder).embed_query(text)"
    ),
    "sentence-transformers": (
        "from sentence_transformers import SentenceTransformer\nSentenceTransformer(folder).encode([text])"
    ),
}
"""What each library's users write; all of them get the same vector."""
BEFORE = "import sys\nmodel, text, folder, exported = sys.argv[1:]\n"
AFTER = "\nprint('ready', flush=True)\nsys.stdin.read()"


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as exported:
        command = [sys.executable, "-m", "bge_integrations.cli", "export", MODEL, exported]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        measures = all_measures(exported, arguments.repetitions)
    page = "\n".join(measure_table(measures))
    (arguments.output / "results-fresh.md").write_text(page + "\n")
    print(page)


def all_measures(exported: str, repetitions: int) -> list[Measure]:
    """Take the programs in turns; the first round, which warms the disk, does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    resident: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    more: dict[str, list[float]] = {name: [] for name in PROGRAMS}
    for repetition in range(repetitions + 1):
        for name, program in PROGRAMS.items():
            with started(program, exported) as (first, took), started(program, exported) as (second, _):
                memory, of_another = first.memory_full_info(), second.memory_full_info()
            if repetition:
                seconds[name].append(took)
                resident[name].append(memory.rss / 1e6)
                more[name].append(of_another.uss / 1e6)
    return [
        *(measure(f"{name}: start to first vector", "s", values) for name, values in seconds.items()),
        *(measure(f"{name}: memory, resident", "MB", values) for name, values in resident.items()),
        *(measure(f"{name}: memory of a second process alone", "MB", values) for name, values in more.items()),
    ]


@contextmanager
def started(program: str, exported: str) -> Iterator[tuple[psutil.Process, float]]:
    """Start a program; give its process and the seconds it took to the first vector."""
    folder = str(Path(__file__).parents[1] / "bge_integrations" / "models" / MODEL.rpartition("/")[2])
    environment = os.environ | {"PYTHONPATH": str(PACKAGES), "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    command = [sys.executable, "-c", BEFORE + program + AFTER, MODEL, TEXT, folder, exported]
    begun = time.perf_counter()
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "ready\n", process.communicate()[1]
        yield psutil.Process(process.pid), time.perf_counter() - begun
        process.kill()


if __name__ == "__main__":
    main()
