"""The two models' cards."""

from typing import Any

from bge_integrations import get_spec

HEADER = """---
license: apache-2.0
language: en
base_model: sentence-transformers/all-MiniLM-L6-v2
pipeline_tag: {task}
library_name: sentence-transformers
---

# {name}

{what} It ships inside the Python package `bge_integrations`, so that tests, notebooks and first steps need no
download. It is this package's own model in the conventions of BAAI's BGE models, not one of BAAI's.

```python
{use}
```

| | |
| --- | --- |
{facts}

"""

EMBEDDER_USE = """from bge_integrations import BgeEmbedder

embedder = BgeEmbedder("bge-integrations/mini-embedder-en")
queries = embedder.encode_queries(["what do pandas eat?"])  # with BGE's English instruction
documents = embedder.encode_documents(["Giant pandas eat bamboo."])  # without"""

RERANKER_USE = """from bge_integrations import BgeReranker

reranker = BgeReranker("bge-integrations/mini-reranker-en")
results = reranker.rerank("what do pandas eat?", ["Paris is in France.", "Giant pandas eat bamboo."])"""

EMBEDDER_FACTS = """| architecture | BERT, 4 layers, 384 wide, 1,024 inner neurons, 11,000 lower-case word pieces |
| pooling | `[CLS]`, then L2 |
| query instruction | `Represent this sentence for searching relevant passages: `; none on documents |
| limit | 512 tokens |
| weights | fp16 safetensors, {params:,} parameters |"""

RERANKER_FACTS = """| architecture | cross-encoder: 3 BERT layers, 384 wide, 1,024 inner neurons, 11,000 word pieces |
| output | one logit a pair; its sigmoid is between 0 and 1 |
| limit | 512 tokens a pair |
| weights | fp16 safetensors, {params:,} parameters |"""

EMBEDDER_TRAINING = """## How it was trained

From all-MiniLM-L6-v2 (Apache-2.0), cut down: four of its six layers, 11,000 of its 30,522 word pieces, 1,024 of its
1,536 inner neurons. It learned that model's vectors of queries, passages, joined passages and prose, then of technical
text too (cosine distance, sentence-transformers' `EmbedDistillLoss`), the teacher averaging over tokens and the student
reading `[CLS]`. Last it learned to rank: for a query and eight passages, the distribution that cosines of
all-MiniLM-L6-v2 and BM25 scores give together (`DistillKLDivLoss`).

"""

RERANKER_TRAINING = """## How it was trained

From the first three layers of all-MiniLM-L6-v2 (Apache-2.0), cut to 11,000 word pieces and 1,024 inner neurons,
listwise (sentence-transformers' `ListNetLoss`) over a few passages of each query: the labelled one, some of those that
all-MiniLM-L6-v2 and BM25 together rank first, some further down, one at random. First it learned to put the labelled
passage on top, then the whole ranking by cosine and BM25 with the labelled passage first, then that ranking alone, for
excerpts of passages and, last, for long queries of 70 to 170 words.

"""

DATA = """On 58,498 question-passage and title-passage pairs of 26 openly licensed sets: SQuADShifts new-Wikipedia, TyDi
QA, Natural Questions (by way of QED and ClapNQ), SelQA, MedQuAD, PubMedQA, COVID-QA, SciTLDR, arXiv, TAT-QA, CFPB
regulations, D.C. law, finance guides, US government FAQs, Dolly, MTRAG, FairytaleQA, based.cooking, Factbook,
tldr-pages, TIL notes, freeCodeCamp guides, PEPs, and documentation of open source projects (MIT, Apache-2.0, BSD, CC
BY, CC BY-SA). The embedder also saw 10,284 paragraphs of two novels in the public domain and the
prose in the docstrings of scientific Python packages (MIT, BSD, Apache-2.0). No query, judgement or document of the
sets below was trained on. The repository's `training/` holds the code; one command runs it again.

"""

LIMITS = """
## Limits

English only, lower case, small: made for tests, notebooks, demonstrations and laptops. Word pieces it lacks fall apart
into smaller ones; characters outside those of English text become unknown. Trained mostly on passages of up to some 200
words. For production take one of BAAI's BGE models; the same classes run them.
"""


def embedder(results: dict[str, Any]) -> str:
    """The embedder's card."""
    what = "A small English text embedder."
    return card(
        "mini-embedder-en", "sentence-similarity", what, EMBEDDER_USE, EMBEDDER_FACTS, EMBEDDER_TRAINING, results
    )


def reranker(results: dict[str, Any]) -> str:
    """The reranker's card."""
    what = "A small English passage reranker."
    return card("mini-reranker-en", "text-ranking", what, RERANKER_USE, RERANKER_FACTS, RERANKER_TRAINING, results)


def card(name: str, task: str, what: str, use: str, facts: str, training: str, results: dict[str, Any]) -> str:
    """One card."""
    facts = facts.format(params=get_spec(f"bge-integrations/{name}").params)
    head = HEADER.format(task=task, name=name, what=what, use=use, facts=facts)
    return head + training + DATA + quality(results) + LIMITS


def quality(results: dict[str, Any]) -> str:
    """What was measured, as a table."""
    lines = [
        "## Measured\n",
        f"nDCG@10 by exact search, by ir_measures, models in {results['dtype']}, at most 300 queries of a set. The",
        "last three columns are about reranking the embedder's first 50: nDCG@10 after it, and how often the reranker",
        "puts a relevant document above an irrelevant one, drawn from the whole set or from those 50 (AUC).\n",
        "| set | all-MiniLM-L6-v2 | mini-embedder-en | of it | reranked | AUC, random | AUC, first 50 |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in results["sets"]:
        share = row["mini-embedder-en"] / row["all-MiniLM-L6-v2"]
        lines.append(
            f"| {row['set']} | {row['all-MiniLM-L6-v2']:.3f} | {row['mini-embedder-en']:.3f} | {share:.0%} "
            f"| {row['reranked']:.3f} | {row['auc_random']:.3f} | {row['auc_top']:.3f} |"
        )
    low, high = results["interval"]
    gain = f"Mean gain of reranking: {results['gain']:+.3f} nDCG@10 (95 % interval {low:+.3f} to {high:+.3f})."
    return "\n".join([*lines, "", gain, ""])
