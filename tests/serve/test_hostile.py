"""Nothing that a client sends is answered with a failure of the server: bad requests get a 4xx that says why."""

import json

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from serving import EMBEDDER, RERANKER, serving

pytestmark = pytest.mark.enable_socket

EMBED = {"type": "EmbedOptions", "side": "query", "outputs": ["dense"]}
CALL = {"model": EMBEDDER, "kind": "embedder", "options": EMBED}
PAIRS = {"model": RERANKER, "kind": "reranker", "options": {"type": "RerankOptions"}}

REQUESTS = {
    "/v1/embeddings": {"model": EMBEDDER, "input": ["a", "b"], "encoding_format": "float", "dimensions": None,
                       "input_type": "query"},
    "/v2/embed": {"model": EMBEDDER, "texts": ["a", "b"], "input_type": "search_query", "embedding_types": ["int8"],
                  "truncate": "END", "output_dimension": None},
    "/v2/embed inputs": {"model": EMBEDDER, "inputs": [{"content": [{"type": "text", "text": "a"}]}]},
    "/v1/rerank": {"model": RERANKER, "query": "a", "documents": ["a", {"text": "b"}], "return_documents": True},
    "/v2/rerank": {"model": RERANKER, "query": "a", "documents": ["a", "b"], "top_n": 1, "max_tokens_per_doc": 9},
    "/embed": {"inputs": ["a", "b"], "normalize": False, "truncate": True, "prompt_name": "query", "dimensions": None},
    "/": {"inputs": ["a", "b"]},
    "/embed_sparse": {"inputs": ["a", "b"], "truncate": True, "prompt_name": "query"},
    "/rerank": {"query": "a", "texts": ["a", "b"], "raw_scores": True, "return_text": True},
    "/tokenize": {"inputs": ["a", "b"], "add_special_tokens": False, "prompt_name": "query", "model": EMBEDDER},
    "/embed_m3": {"inputs": ["a", "b"], "outputs": ["dense", "sparse"], "input_type": "query", "truncate": True},
    "/bge/submit": {**CALL, "items": ["a", "b"], "max_batch_tokens": 9, "refuse_long": True, "first": 3,
                    "patient": True},
    "/bge/submit pairs": {**PAIRS, "items": [["a", "b"], ["a", "c"]]},
    "/bge/describe": {**CALL, "path": None, "revision": None, "dtype": None, "like": None},
    "/bge/fingerprint": CALL,
    "/bge/try": {"query": "a", "passages": ["a", "b"], "embedder": EMBEDDER, "reranker": RERANKER},
}  # fmt: skip
"""A good request for every path, with every field that it has; what follows a space tells two of one path apart."""

TEXTS = {
    "/v1/embeddings": "input", "/v2/embed": "texts", "/v1/rerank": "documents", "/v2/rerank": "documents",
    "/embed": "inputs", "/": "inputs", "/embed_sparse": "inputs", "/rerank": "texts", "/tokenize": "inputs",
    "/embed_m3": "inputs", "/bge/submit": "items", "/bge/submit pairs": "items",
}  # fmt: skip
"""The field that holds the list of texts."""

RAW = {
    "nothing": b"",
    "a space": b" ",
    "no JSON": b"panda",
    "half": b'{"model": "a", "input": ["a"',
    "two": b"{} {}",
    "null": b"null",
    "a number": b"1",
    "a text": b'"a"',
    "a list": b"[]",
    "no fields": b"{}",
    "NaN": b"NaN",
    "infinity": b"-Infinity",
    "invalid UTF-8": b'{"input": "\xff", "inputs": "\xff", "texts": ["\xc3\x28"]}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "NUL": b"\0" * 100,
    "a huge number": b"9" * 10_000,
    "a huge number in a field": b'{"input": ' + b"9" * 10_000 + b"}",
    "a huge exponent": b'{"input": 1e999999, "inputs": 1e999999, "texts": 1e999999, "items": 1e999999}',
    "deep lists": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    "unclosed": b"[" * 200_000,
    "a surrogate as a name": b'{"\\ud800": 1}',
    "form": b"inputs=a&input=a",
}

VALUES = {
    "null": "null", "true": "true", "zero": "0", "minus": "-1", "half": "0.5", "huge": "9" * 30, "enormous": "9" * 5000,
    "NaN": "NaN", "infinity": "Infinity", "overflow": "1e999", "text": '"zz"', "empty": '""', "NUL": '"\\u0000"',
    "surrogate": '"\\ud800"', "path": '"../../etc/passwd"', "list": "[]", "lists": "[[]]", "object": "{}",
    "nested object": '{"a": {"\\ud800": ["\\udfff"]}}', "mixed": '["a", null, 1]', "surrogates": '["a", "\\ud800"]',
    **{f"deep {depth}": "[" * depth + "]" * depth for depth in (100, 300, 500, 700, 900, 960, 990, 1100)},
    "deep object": '{"a":' * 800 + "1" + "}" * 800,
}  # fmt: skip

BAD_TEXTS = {"null": None, "number": 1, "boolean": True, "list": ["b"], "object": {"a": "b"}, "surrogate": "b\ud800"}


@pytest.fixture(scope="module")
def http(server, m3_server):
    with httpx.Client(timeout=120) as client:

        def send(request, body, method="POST", kind="application/json"):
            path = request.partition(" ")[0]
            address = m3_server if path in ("/embed_sparse", "/embed_m3") else server
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            headers = {"Content-Type": kind} if kind else {}
            return path, client.request(method, address + path, content=content, headers=headers)

        yield send


def refused(path, answer, said=""):
    """Check that an answer is a 4xx in the shape of the path's protocol, and return its message."""
    assert 400 <= answer.status_code < 500, answer.text
    body = answer.json()
    if path.startswith("/v1/embeddings"):
        assert set(body["error"]) == {"message", "type", "param", "code"}
        message = body["error"]["message"]
    elif path.startswith(("/v1", "/v2")):
        assert set(body) == {"message", "detail", "code"}
        message = body["message"]
    elif path.startswith(("/bge", "/embed_m3")):
        assert set(body["error"]) == {"type", "message"}
        message = body["error"]["message"]
    else:
        assert set(body) == {"error", "error_type"}
        message = body["error"]
    assert message
    assert said in message
    return message


@pytest.mark.parametrize("request_", REQUESTS)
def test_the_requests_themselves_are_good(request_, http):
    _, answer = http(request_, REQUESTS[request_])
    assert answer.status_code == 200, answer.text


@pytest.mark.parametrize("request_", REQUESTS)
@pytest.mark.parametrize("raw", RAW)
def test_a_body_that_is_no_request_is_refused(raw, request_, http):
    refused(*http(request_, RAW[raw]))


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_wrong_value_in_any_field_is_no_failure(request_, http):
    """Some are right in some fields: what counts is an answer that is none of 5xx, in the protocol's shape."""
    good = REQUESTS[request_]
    for field in good:
        before = {name: json.dumps(value) for name, value in good.items()}
        for name, value in VALUES.items():
            text = ",".join(f"{json.dumps(key)}:{other}" for key, other in (before | {field: value}).items())
            path, answer = http(request_, f"{{{text}}}".encode())
            if answer.status_code != 200:
                refused(path, answer)
            elif "deep" in name:
                pytest.fail(f"{field} took {name}")


@pytest.mark.parametrize("field", ["side", "max_length", "truncate_dim", "outputs", "query_instruction", "examples"])
def test_a_wrong_value_in_the_options_of_a_call_is_no_failure(field, http):
    for value in VALUES.values():
        options = json.dumps(EMBED)[:-1] + f', "{field}": {value}}}'
        for path in ("/bge/submit", "/bge/describe", "/bge/fingerprint"):
            call = json.dumps({**CALL, "items": ["a"], "options": 0}).replace('"options": 0', f'"options": {options}')
            _, answer = http(path, call.encode())
            if answer.status_code != 200:
                refused(path, answer)


@pytest.mark.parametrize("request_", TEXTS)
@pytest.mark.parametrize("bad", BAD_TEXTS)
def test_a_wrong_text_is_refused_with_its_index(bad, request_, http):
    good = ["a", "b"] if "pairs" in request_ else "a"
    value = ["a", BAD_TEXTS[bad]] if "pairs" in request_ else BAD_TEXTS[bad]
    body = REQUESTS[request_] | {TEXTS[request_]: [good, good, value, good], "first": 0}
    message = refused(*http(request_, body))
    assert "[2]" in message or "Text 2 " in message, message


@pytest.mark.parametrize("request_", TEXTS)
def test_no_text_at_all_is_refused(request_, http):
    refused(*http(request_, REQUESTS[request_] | {TEXTS[request_]: []}))


@pytest.mark.parametrize("request_", TEXTS)
def test_more_texts_than_the_server_takes_are_refused(request_, http):
    text = ["a", "b"] if "pairs" in request_ else "a"
    path, answer = http(request_, REQUESTS[request_] | {TEXTS[request_]: [text] * 5000})
    refused(path, answer, "5000 texts are more than the 4096 of one request")
    assert answer.status_code == 413


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "nonsense"]
)
@pytest.mark.parametrize("request_", [request for request in REQUESTS if not request.startswith("/bge")])
def test_a_body_that_is_not_called_json_is_refused(request_, kind, http):
    refused(*http(request_, REQUESTS[request_], kind=kind), "Content-Type: application/json")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH"])
@pytest.mark.parametrize("request_", REQUESTS)
def test_another_method_is_refused(request_, method, http):
    if method == "GET" and request_ in ("/", "/bge/try"):
        return  # a page, and what it asks for
    path, answer = http(request_, REQUESTS[request_], method)
    refused(path, answer)
    assert answer.status_code == 405


@pytest.mark.parametrize("path", ["/v1/other", "/v2/other", "/other", "/bge/other", "/%00", "/..%2f..%2fetc/passwd"])
def test_a_path_that_is_not_there_is_not_found(path, http):
    assert http(path, {})[1].status_code == 404


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "localhost.evil.example", "[::1", "127.0.0.1.x"])
def test_a_name_that_is_not_the_servers_is_refused(host, server):
    """A page may let its own name lead a browser to this machine, and then ask the server as if it were its own."""
    for path in {request.partition(" ")[0] for request in REQUESTS}:
        answer = httpx.post(server + path, json={}, headers={"Host": host}, timeout=120)
        assert answer.status_code == 403
        refused(path, answer, "--allow-host")


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:80", "127.0.0.1", "[::1]:80", "192.0.2.1", "gpu-box:80"])
def test_this_machine_addresses_and_allowed_names_pass(host, server):
    assert httpx.get(f"{server}/health", headers={"Host": host}, timeout=120).status_code == 200


@pytest.fixture(scope="module")
def any_model(tmp_path_factory):
    """A client of a server without a model of its own, which loads what its only user names."""
    path = tmp_path_factory.mktemp("any") / "bge.sock"
    with (
        serving("--socket", path, "--auto", models=(), HF_HUB_OFFLINE="1"),
        httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://bge", timeout=60) as client,
    ):
        yield client


@pytest.mark.parametrize("field", ["model", "path", "kind", "revision", "dtype", "like", "cache_folder"])
def test_a_wrong_model_is_no_failure_of_a_server_that_loads_any(field, any_model):
    for value in VALUES.values():
        call = json.dumps({**REQUESTS["/bge/submit"], field: 0}).replace(f'"{field}": 0', f'"{field}": {value}')
        for path in ("/bge/submit", "/bge/describe", "/bge/fingerprint"):
            answer = any_model.post(path, content=call.encode())
            if answer.status_code != 200:
                refused(path, answer)


@pytest.mark.parametrize("request_", ["/embed", "/rerank", "/tokenize", "/embed_m3", "/embed_sparse"])
def test_a_server_without_a_model_of_its_own_says_so(request_, any_model):
    answer = any_model.post(request_, json=REQUESTS[request_])
    refused(request_, answer)
    assert answer.status_code == 404
    assert any_model.get("/info").status_code == 404


def quickly(examples):
    return settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))


def ask_generated(server, examples):
    """Send requests made from the server's OpenAPI document, good and bad ones, and return how many were sent."""
    document = httpx.get(f"{server}/openapi.json", timeout=60).json()
    for part in document["components"]["schemas"].values():
        if "model" in part.get("properties", {}):
            part["properties"]["model"] = {"enum": [EMBEDDER, RERANKER, f"{EMBEDDER}-query", "other"]}
    asked = 0
    for found in schemathesis.openapi.from_dict(document).get_all_operations():
        operation = found.ok()
        for mode in GenerationMode if operation.body else [GenerationMode.POSITIVE]:

            @quickly(examples)
            @given(operation.as_strategy(generation_mode=mode))
            def ask(case):
                nonlocal asked
                asked += 1
                assert case.call(base_url=server, timeout=60).status_code < 500

            ask()
    return asked


def ask_raw(http, examples):
    """Send any bytes, and calls of `cache=` with any JSON in a field, to the paths that no document describes."""
    anything = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
    calls = [REQUESTS["/bge/submit"], REQUESTS["/bge/submit pairs"]]

    @quickly(examples)
    @given(st.binary(), st.sampled_from(calls), st.sampled_from([*calls[0], *EMBED]), anything)
    def ask(raw, call, field, value):
        changed = {"options": call["options"] | {field: value}} if field in EMBED else {field: value}
        for path in ("/bge/submit", "/bge/describe", "/bge/fingerprint"):
            for body in (raw, call | changed):
                _, answer = http(path, body)
                if answer.status_code != 200:
                    refused(path, answer)

    ask()


def test_generated_requests_are_answered(server, http):
    assert ask_generated(server, 15) > 200
    ask_raw(http, 60)


@pytest.mark.slow
def test_two_thousand_generated_requests_are_answered(server, http):
    assert ask_generated(server, 100) > 1_500
    ask_raw(http, 200)
