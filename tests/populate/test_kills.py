"""A process that fills a store is killed at any moment: what it had done stays done, nothing is lost, nothing twice."""

import multiprocessing
import random
from pathlib import Path

import pytest
from fill import COUNT, fill, open_store, stored_texts

KILLS = {"chroma": 20, "lancedb": 6, "qdrant": 6}


@pytest.mark.kill
@pytest.mark.timeout(280)
@pytest.mark.parametrize(("kind", "wanted"), KILLS.items())
def test_a_killed_run_goes_on_where_it_was(kind: str, wanted: int, bert_embedder: Path, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bge_integrations.langchain", "langchain_chroma", "sentence_transformers"])
    draw, done, kills = random.Random(0), 0, 0
    while done < COUNT:
        receive, send = context.Pipe(duplex=False)
        process = context.Process(target=fill, args=(kind, bert_embedder, tmp_path / "store", send))
        process.start()
        send.close()
        kill_at = done + draw.randint(0, 2 * COUNT // wanted) if kills < wanted else COUNT + 1
        held, documents, texts = done, 0, 0
        while documents < kill_at:
            try:
                documents, texts = receive.recv()
            except EOFError:
                break
            assert texts <= max(0, documents - held), "a document that was done is computed again"
            done = max(done, documents)
        else:
            receive.poll(draw.random() / 20)  # somewhere in the next batches
            process.kill()
            kills += 1
        process.join(30)
        assert process.exitcode in (0, -9)
    assert kills >= wanted // 2
    texts = stored_texts(kind, open_store(kind, bert_embedder, tmp_path / "store"))
    assert sorted(texts) == sorted(f"Text number {n} is about pandas." for n in range(COUNT))
