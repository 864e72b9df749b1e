"""Labelled sets: both places of the judgements, and every wrong line named."""

from pathlib import Path

import pytest

from bge_integrations.evaluation import read_labelled_set

CORPUS = '{"_id": "d1", "title": "Pandas", "text": "They eat bamboo."}\n{"_id": "d2", "text": "Whales sing."}\n'
QUERIES = (
    '{"_id": "q1", "text": "who eats?"}\n{"_id": "q2", "text": "who sings?"}\n{"_id": "q3", "text": "what else?"}\n'
)
QRELS = "query-id\tcorpus-id\tscore\nq2\td2\t2\nq2\td1\t0\nq1\td1\t1\nq3\td1\t0\n"


def write(folder: Path, corpus: str = CORPUS, queries: str = QUERIES, qrels: str = QRELS, name: str = "qrels.tsv"):
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for file, text in (("corpus.jsonl", corpus), ("queries.jsonl", queries), (name, qrels)):
        (folder / file).write_bytes(text.encode())
    return folder


@pytest.mark.parametrize("name", ["qrels.tsv", "qrels/test.tsv"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\n\n"])
def test_titles_come_first_and_queries_without_an_answer_are_left_out(tmp_path, name, newline):
    data = read_labelled_set(
        write(tmp_path / "zoo", *(t.replace("\n", newline) for t in (CORPUS, QUERIES, QRELS)), name)
    )
    assert data.name == "zoo"
    assert data.documents == {"d1": "Pandas They eat bamboo.", "d2": "Whales sing."}
    assert data.queries == {"q1": "who eats?", "q2": "who sings?"}
    assert data.judgements == {"q1": {"d1": 1}, "q2": {"d2": 2, "d1": 0}}
    assert data.relevant("q2") == {"d2"}


def test_a_mark_at_the_start_no_header_and_an_empty_title(tmp_path):
    corpus = '\ufeff{"_id": "d1", "title": null, "text": "a"}\n{"_id": "d2", "title": "", "text": "b"}'
    data = read_labelled_set(str(write(tmp_path, corpus, qrels="q1\td1\t1\nq2\td2\t1")))
    assert data.documents == {"d1": "a", "d2": "b"}
    assert list(data.queries) == ["q1", "q2"]


def test_a_split_is_taken_by_name(tmp_path):
    write(tmp_path, name="qrels/test.tsv")
    write(tmp_path, qrels="q3\td2\t1\n", name="qrels/dev.tsv")
    assert list(read_labelled_set(tmp_path).queries) == ["q1", "q2"]
    assert list(read_labelled_set(tmp_path, "dev").queries) == ["q3"]
    with pytest.raises(ValueError, match='no split "train". Its splits: dev, test'):
        read_labelled_set(tmp_path, "train")


def test_a_few_queries_are_always_the_same_ones(tmp_path):
    queries = "".join(f'{{"_id": "q{n}", "text": "text {n}"}}\n' for n in range(40))
    write(tmp_path, queries=queries, qrels="".join(f"q{n}\td1\t1\n" for n in range(40)))
    few = read_labelled_set(tmp_path, queries=5)
    assert len(few.queries) == 5
    assert few == read_labelled_set(tmp_path, queries=5)
    assert few.queries.keys() == few.judgements.keys() != {f"q{n}" for n in range(5)}
    assert len(read_labelled_set(tmp_path, queries=100).queries) == 40
    with pytest.raises(ValueError, match="queries must be 1 or more"):
        read_labelled_set(tmp_path, queries=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"corpus": CORPUS + "{'_id'}"}, "corpus.jsonl, line 3 is not JSON"),
        ({"corpus": CORPUS + "\n[1]"}, r'corpus.jsonl, line 4 needs "_id" and "text"'),
        ({"corpus": CORPUS + '{"_id": 3, "text": "x"}'}, r'corpus.jsonl, line 3 needs "_id" and "text"'),
        ({"queries": '{"_id": "q1"}\n'}, r'queries.jsonl, line 1 needs "_id" and "text"'),
        ({"queries": QUERIES * 2}, 'queries.jsonl, line 4 has the "_id" of an earlier line, q1'),
        ({"qrels": QRELS + "q1 d2 1\n"}, "qrels.tsv, line 6 needs query id, document id and relevance"),
        ({"qrels": QRELS + "q1\td2\tyes\n"}, "qrels.tsv, line 6 needs query id, document id and relevance"),
        ({"qrels": QRELS + "q1\td9\t1\n"}, "qrels.tsv, line 6 judges a document that corpus.jsonl lacks, d9"),
        ({"qrels": QRELS + "q9\td1\t1\n"}, "qrels.tsv, line 6 judges a query that queries.jsonl lacks, q9"),
        ({"qrels": "q1\td1\t0\n"}, "no document relevant to any query"),
        ({"qrels": ""}, "no document relevant to any query"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, wrong, message):
    with pytest.raises(ValueError, match=message):
        read_labelled_set(write(tmp_path, **wrong))


def test_bytes_that_are_no_text_are_named(tmp_path):
    (write(tmp_path) / "corpus.jsonl").write_bytes(CORPUS.encode() + b'{"_id": "d3", "text": "\xff"}')
    with pytest.raises(ValueError, match=r"corpus.jsonl, line 3 is not UTF-8"):
        read_labelled_set(tmp_path)


@pytest.mark.parametrize("name", ["corpus.jsonl", "queries.jsonl", "qrels.tsv"])
def test_a_missing_file_is_named(tmp_path, name):
    (write(tmp_path) / name).unlink()
    with pytest.raises(ValueError, match=f"has no {name}. A labelled set"):
        read_labelled_set(tmp_path)
    with pytest.raises(ValueError, match="There is no folder"):
        read_labelled_set(tmp_path / "nothing")
