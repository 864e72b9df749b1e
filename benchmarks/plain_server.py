"""The plainest server of embeddings, the peer of `bge serve`: sentence-transformers behind FastAPI."""

import socket
import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(sys.argv[1])
app = FastAPI()


class Body(BaseModel):
    """OpenAI's, as far as it is needed."""

    input: list[str]


@app.post("/v1/embeddings")
def embeddings(body: Body) -> dict[str, object]:
    """Embed the texts; FastAPI runs this in one of its threads."""
    return {"data": [{"embedding": vector.tolist()} for vector in model.encode(body.input)]}


with socket.create_server(("127.0.0.1", 0)) as listener:
    print(f"http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listener])
