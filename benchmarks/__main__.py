"""Our calls beside the peers', in one run; writes benchmarks/results.json and results.md.

Each figure is a ratio within one repetition, so that a noisy machine slows both sides; the tables give the median and
the spread of all repetitions. Speeds are of random weights of the real shape: they do not depend on the values.
"""

import argparse
import json
import os
import platform
import sys
import tempfile
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from benchmarks.cpu import measure_speed
from benchmarks.filling import measure_filling
from benchmarks.gpu import GpuBenchmark
from benchmarks.harness import measure_table, ratio_table
from benchmarks.overheads import measure_overheads
from benchmarks.quality import measure_quality, quality_table
from benchmarks.texts import Texts

RESULTS = Path(__file__).parent
LIBRARIES = ("torch", "transformers", "sentence-transformers", "openvino")


def main() -> None:
    """Measure every job and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="texts and labelled sets; without it docstrings, and no quality")
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--texts", type=int, help="documents of a call: 96 on a CPU, 2,000 on a GPU")
    parser.add_argument("--gpu", metavar="DEVICE", help="the GPU's jobs alone, on cuda; written to results-gpu")
    parser.add_argument("--shape", help='with --gpu: one shape for all models, as "tiny" to try the jobs')
    parser.add_argument("--output", type=Path, default=RESULTS, help="the folder of the results")
    arguments = parser.parse_args()
    texts = Texts(arguments.data)
    with tempfile.TemporaryDirectory() as folder:
        tables = _on_gpu(Path(folder), texts, arguments) if arguments.gpu else _on_cpu(Path(folder), texts, arguments)
    facts = {
        "machine": _machine(arguments.gpu),
        "versions": ", ".join(f"{name} {version(name)}" for name in LIBRARIES),
        "command": f"python -m benchmarks {' '.join(sys.argv[1:])}".strip(),
        "texts": texts.source,
    }
    name = "results-gpu" if arguments.gpu else "results"
    plain = {key: [row if isinstance(row, dict) else asdict(row) for row in rows] for key, (rows, _) in tables.items()}
    (arguments.output / f"{name}.json").write_text(json.dumps(facts | plain, indent=1) + "\n")
    blocks = ["\n".join(lines) for _, lines in tables.values()]
    page = "\n\n".join([*blocks, f"{facts['machine']}; {facts['versions']}; `{facts['command']}`; {facts['texts']}"])
    (arguments.output / f"{name}.md").write_text(page + "\n")
    print(page)


Tables = dict[str, tuple[list[Any], list[str]]]
"""Name -> rows, and the same as Markdown."""


def _on_cpu(folder: Path, texts: Texts, arguments: argparse.Namespace) -> Tables:
    ratios = measure_speed(folder, texts, arguments.texts or 96, arguments.repetitions)
    measures = measure_overheads(folder, texts, arguments.repetitions)
    measures += measure_filling(folder, texts, arguments.repetitions)
    tables: Tables = {
        "ratios": (ratios, ratio_table(ratios, "bge-small's shape")),
        "measures": (measures, measure_table(measures)),
    }
    if arguments.data:
        quality = measure_quality(arguments.data)
        tables["quality"] = quality, quality_table(quality)
    return tables


def _on_gpu(folder: Path, texts: Texts, arguments: argparse.Namespace) -> Tables:
    benchmark = GpuBenchmark(
        folder,
        texts,
        count=arguments.texts or 2_000,
        repetitions=arguments.repetitions,
        device=arguments.gpu,
        shape=arguments.shape,
    )
    ratios, measures = benchmark.ratios(), benchmark.measures()
    return {
        "ratios": (ratios, ratio_table(ratios, "shapes of the models named")),
        "measures": (measures, measure_table(measures)),
    }


def _machine(gpu: str | None) -> str:
    if gpu == "cuda":
        return torch.cuda.get_device_name()
    return f"{platform.machine()}, {os.cpu_count()} cores, torch with {torch.get_num_threads()} threads"


if __name__ == "__main__":
    main()
