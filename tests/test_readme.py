"""The README's Python blocks run, top to bottom, as a reader would type them.

The models they name are tiny ones in a local hub cache, so ids, cache layout and loading are the real thing.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import tiny

README = Path(__file__).parents[1] / "README.md"
REVISION = "0" * 40


def test_python_blocks_run_in_order(tmp_path):
    hub = tmp_path / "hub"
    tiny.make_bert_embedder(_snapshot(hub, "BAAI/bge-base-en-v1.5"))
    tiny.make_m3(_snapshot(hub, "BAAI/bge-m3"))
    tiny.make_xlmr_reranker(_snapshot(hub, "BAAI/bge-reranker-v2-m3"))
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    script = tmp_path / "readme.py"
    script.write_text("\n".join(blocks), encoding="utf-8")
    environment = os.environ | {"HF_HUB_CACHE": str(hub), "HF_HUB_OFFLINE": "1"}

    run = subprocess.run(
        [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=100
    )

    assert run.returncode == 0, run.stderr
    assert len(blocks) >= 6
    assert "Giant pandas eat bamboo." in run.stdout


def _snapshot(hub: Path, model: str) -> Path:
    """The folder in which the hub's client keeps a model, made known as its main branch."""
    repository = hub / f"models--{model.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(REVISION, encoding="utf-8")
    snapshot = repository / "snapshots" / REVISION
    snapshot.mkdir(parents=True)
    return snapshot
