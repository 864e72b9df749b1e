"""The pages for people, in a real browser: what they show is what the core computes, and they load nothing else."""

import json
import re
import shlex
import shutil

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from serving import EMBEDDER, RERANKER, serving

from bge_integrations.serve import create_app

pytestmark = pytest.mark.enable_socket

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")

QUERY = "what do pandas eat?"
PASSAGES = ["Giant pandas live on bamboo.", "Bread needs flour, water and salt.", "The giant panda is a bear."]
LONG = " ".join(["panda"] * 700)
SCRIPT = "<img src=x onerror=\"window.hit = 1\"><script>window.hit = 1</script> & 'quoted' ${text}"


@pytest.fixture(scope="module")
def browser():
    path = shutil.which("chromium") or pytest.skip("no chromium on this machine: the pages need a browser")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A tab that has asked one server only, and in which no script has failed."""
    page = browser.new_page()
    page.set_default_timeout(60_000)
    asked, errors = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    yield page
    origins = {re.match(r"\w+://[^/]+", url)[0] for url in asked if not url.startswith("data:")}
    page.close()
    assert len(origins) == 1, asked
    assert errors == []


@pytest.fixture(scope="module")
def locked(tmp_path_factory):
    """A server that wants a key, and has no embedder."""
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("sesame\n")
    with serving("--port", "0", "--api-key-file", keys, models=[RERANKER]) as server:
        yield server.address


def compare(page, passages, query=QUERY):
    """Fill the form and return the rows of the answer by their passage: cosine, score, tokens, and the marks."""
    page.fill("#query", query)
    page.fill("#passages", "\n".join(passages))
    page.click("#try button")
    page.wait_for_selector("#try button:not(:disabled)")
    page.wait_for_selector("#answer:not([hidden])")
    rows = {}
    for row in page.query_selector_all("#results tbody tr"):
        text, *numbers = row.query_selector_all("td")
        marks = [mark.inner_text() for mark in text.query_selector_all(".cut")]
        rows[text.query_selector("div").text_content()] = [*(cell.inner_text() for cell in numbers), marks]
    return rows


def test_scores_are_those_of_the_core(server, page, embedder, reranker, tmp_path):
    page.goto(server)
    page.wait_for_selector("#embedder option", state="attached")
    rows = compare(page, PASSAGES)
    assert rows.keys() == set(PASSAGES)
    (query,), documents = embedder.encode_queries([QUERY]), embedder.encode_documents(PASSAGES)
    scores = reranker.score([(QUERY, passage) for passage in PASSAGES])
    shown = np.array([rows[passage][:2] for passage in PASSAGES], dtype=float)
    np.testing.assert_allclose(shown, np.stack([documents @ query, scores], axis=1), rtol=0, atol=1e-4)
    assert list(rows) == sorted(PASSAGES, key=lambda passage: -scores[PASSAGES.index(passage)])
    assert all(marks == [] for *_, marks in rows.values())
    page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_it_shows_what_is_loaded_and_how_busy(server, page):
    page.goto(server)
    compare(page, PASSAGES)
    page.wait_for_selector('#graph .line[d*="L"]', state="attached")
    page.wait_for_selector(f'tr[data-model="{RERANKER}"][data-resident=true]')
    compare(page, PASSAGES)
    playwright.expect(page.locator("#top")).not_to_have_text(re.compile("^[01]$"), timeout=30_000)
    for model in (EMBEDDER, RERANKER):
        name, where, memory, waiting, *counts = page.query_selector_all(f'tr[data-model="{model}"] td')
        assert name.inner_text() == model
        assert where.inner_text().startswith("cpu, float32, ")
        assert re.fullmatch(r"\d+\.\d MiB", memory.inner_text())
        assert [re.sub(",", "", count.inner_text()).isdecimal() for count in (waiting, *counts)] == [True] * 4
        assert counts[1].inner_text() != "0"
    assert "2 loaded so far, 0 evicted; no budget" in page.inner_text("#events")


def test_a_cut_passage_is_marked(server, page):
    page.goto(server)
    page.wait_for_selector("#embedder option", state="attached")
    rows = compare(page, [PASSAGES[0], LONG])
    assert rows[PASSAGES[0]][-1] == []
    *_, tokens, (alone, with_query) = rows[LONG]
    total = int(tokens.replace(",", ""))
    assert total > 512
    assert alone == f"cut: {total - 512:,} of {tokens} tokens"
    lost, of = (int(text.replace(",", "")) for text in re.findall(r"[\d,]*\d", with_query))
    assert with_query.startswith("with the query, cut: ")
    assert of - lost == 512
    assert total < of
    compare(page, PASSAGES[:1], query=LONG)
    assert "cut:" in page.inner_text("#read")


def test_text_is_never_run(server, page):
    dialogs = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog), dialog.dismiss()))
    page.goto(server)
    rows = compare(page, [SCRIPT, "<script>alert(1)</script>"], query=SCRIPT)
    assert rows.keys() == {SCRIPT, "<script>alert(1)</script>"}
    assert page.query_selector("#answer img, #answer script") is None
    page.evaluate(
        "document.body.append(Object.assign(document.createElement('script'), {textContent: 'window.hit = 1'}))"
    )
    page.wait_for_timeout(200)
    assert page.evaluate("window.hit ?? null") is None
    assert dialogs == []


def test_an_error_is_text(server, page):
    page.goto(server)
    page.fill("#passages", "\n".join(["panda"] * 51))
    page.click("#try button")
    page.wait_for_selector("#failure:not([hidden])")
    assert page.inner_text("#failure").startswith("passages: ")
    assert page.is_hidden("#answer")
    compare(page, PASSAGES)
    assert page.is_hidden("#failure")


def test_a_key_is_asked_for_and_an_embedder_may_be_missing(locked, page, reranker):
    page.goto(locked)
    page.wait_for_selector("#access:not([hidden])")
    for key in ("wrong", "sesame"):
        assert page.query_selector("#models tbody tr") is None
        page.fill("#key", key)
        with page.expect_response(re.compile("/bge/try$")):
            page.click("#access button")
    page.wait_for_selector(f'tr[data-model="{RERANKER}"][data-resident=false]')
    assert page.is_hidden("#access")
    assert page.is_hidden("#embedder")
    rows = compare(page, [*PASSAGES, LONG])
    scores = reranker.score([(QUERY, passage) for passage in rows])
    np.testing.assert_allclose([float(row[1]) for row in rows.values()], scores, rtol=0, atol=1e-4)
    assert {row[0] for row in rows.values()} == {"–"}
    assert [mark[:20] for mark in rows[LONG][-1]] == ["with the query, cut:"]
    page.wait_for_selector(f'tr[data-model="{RERANKER}"][data-resident=true]')


def test_pages_need_no_key_and_allow_only_themselves(locked):
    for path in ("/", "/docs"):
        answer = httpx.get(locked + path)
        assert answer.status_code == 200
        assert RERANKER not in answer.text
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
    assert {httpx.get(locked + path).status_code for path in ("/metrics", "/bge/stats", "/bge/try")} == {401}


def test_examples_of_the_docs_work(server, page):
    page.goto(f"{server}/docs")
    document = httpx.get(f"{server}/openapi.json").json()
    examples = [shlex.split(pre.text_content().replace("\\\n", "")) for pre in page.query_selector_all("article pre")]
    assert {argument.removeprefix(server) for example in examples for argument in example if server in argument} == set(
        document["paths"]
    )
    assert page.inner_text("article:has-text('/v1/embeddings')").count("required") == 2
    for _, url, *rest in examples:
        model = RERANKER if "rerank" in url else EMBEDDER
        if rest:
            body = json.loads(rest[-1]) | ({"model": model} if "MODEL" in rest[-1] else {})
            answer = httpx.post(url, json=body, timeout=120)
        else:
            answer = httpx.get(url, timeout=120)
        of_m3 = url.removeprefix(server) in ("/embed_m3", "/embed_sparse")
        assert answer.status_code in ((400, 422) if of_m3 else (200,)), (url, answer.text)


def test_pages_of_a_mounted_application_stay_within_it(cache):
    outer = FastAPI()
    outer.mount("/models", create_app([EMBEDDER], cache=cache))
    client = TestClient(outer)
    pages = [client.get(path).text for path in ("/models", "/models/docs?x=1")]
    assert "<pre>curl http://testserver/models/v1/embeddings " in pages[1]
    assert re.findall(r'(?:href=|ask\()"/', "".join(pages)) == []
    for path in ("docs", "openapi.json", "metrics", "bge/try", "bge/stats"):
        assert client.get(f"/models/{path}").status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"query": QUERY, "passages": []}, 400, "passages: "),
        ({"query": QUERY, "passages": ["panda"] * 51}, 400, "passages: "),
        ({"query": QUERY, "passages": ["panda", 1]}, 400, r"passages\[1\]: "),
        ({"query": QUERY, "passages": ["panda", "\ud800"]}, 400, " 1 .*surrogate"),
        ({"query": QUERY}, 400, "passages: "),
        ({"query": QUERY, "passages": ["panda"], "embedder": "nobody/nothing"}, 404, "no embedder"),
        ({"query": QUERY, "passages": ["panda"], "embedder": RERANKER}, 400, "no embedder"),
        ({"query": QUERY, "passages": ["panda"], "reranker": EMBEDDER}, 400, "no reranker"),
        ([], 400, "The body"),
        (None, 400, "The body"),
    ],
)
def test_bad_input_is_refused(server, body, status, message):
    answer = httpx.post(
        f"{server}/bge/try", content=json.dumps(body).encode(), headers={"content-type": "application/json"}
    )
    assert answer.status_code == status, answer.text
    assert re.search(message, answer.json()["error"]["message"])


def test_tokens_and_cuts_are_exact(server):
    """The query's own limit cuts it to 384 tokens before the pair's limit of 512 matters."""
    query, passage = " ".join(["panda"] * 500), "panda bear"
    answer = httpx.post(f"{server}/bge/try", json={"query": query, "passages": [passage]}, timeout=120).json()

    def tokens(text):
        (found,) = httpx.post(
            f"{server}/tokenize", json={"inputs": text, "add_special_tokens": False}, timeout=120
        ).json()
        return len(found)

    (result,) = answer["results"]
    long, short = tokens(query), tokens(passage)
    assert {key: result[key] for key in ("tokens", "limit", "cut")} == {"tokens": short + 2, "limit": 512, "cut": 0}
    assert result["pair"] == {"tokens": long + short + 3, "limit": 512, "cut": long - 384}
    assert answer["query"]["cut"] == answer["query"]["tokens"] - 512 > 0
