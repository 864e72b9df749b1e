"""The command `bge serve`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

LOOPBACK = ("127.0.0.1", "::1", "localhost")


Models = Annotated[list[str] | None, typer.Argument(help="Embedders and rerankers: ids or folders.")]
Host = Annotated[str, typer.Option(help="Address to listen on.")]
Port = Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)]
Socket = Annotated[Path | None, typer.Option(help="Listen on this Unix socket instead, which only its owner may open.")]
KeyFile = Annotated[
    Path | None,
    typer.Option(help="File of keys, one a line, of which a client has to send one.", exists=True, dir_okay=False),
]
NoAuth = Annotated[bool, typer.Option("--no-auth", help="Listen beyond this machine without a key.")]
AllowHost = Annotated[
    list[str] | None, typer.Option(help="Name by which browsers on this machine may ask for it, besides localhost.")
]
Budget = Annotated[str | None, typer.Option(help='Most memory of weights a device, such as "20GiB".')]
MaxWaiting = Annotated[int, typer.Option(help="Calls that may wait for a model.", min=1)]
MaxBody = Annotated[int, typer.Option(help="Most bytes of a request.", min=1)]
MaxTexts = Annotated[int, typer.Option(help="Most texts, or passages, of a request.", min=1)]
Drain = Annotated[int, typer.Option(help="Seconds within which the server ends after SIGTERM.", min=3)]
IdleExit = Annotated[float | None, typer.Option(help="Seconds without a request after which it ends. Default: never.")]
Like = Annotated[str | None, typer.Option(help="The id that fine-tunes or bare folders descend from.")]
Device = Annotated[str | None, typer.Option(help="Where models run: cpu, cuda:0, mps. Default: the best there is.")]
Dtype = Annotated[str | None, typer.Option(help="float32, bfloat16, float16, or int8 (openvino).")]
Backend = Annotated[
    Literal["auto", "torch", "openvino", "sentence_transformers"], typer.Option(help="Library that runs the models.")
]
Auto = Annotated[bool, typer.Option("--auto", hidden=True)]


def serve(
    models: Models = None,
    host: Host = "127.0.0.1",
    port: Port = 8080,
    socket: Socket = None,
    api_key_file: KeyFile = None,
    no_auth: NoAuth = False,
    allow_host: AllowHost = None,
    budget: Budget = None,
    max_waiting: MaxWaiting = 10_000,
    max_body: MaxBody = 32 << 20,
    max_texts: MaxTexts = 4096,
    drain: Drain = 30,
    idle_exit: IdleExit = None,
    like: Like = None,
    device: Device = None,
    dtype: Dtype = None,
    backend: Backend = "auto",
    auto: Auto = False,
) -> None:
    """Serve models to other processes, so that all of them share one copy.

    Applications use it with cache="http://127.0.0.1:8080", or BGE_CACHE in their environment. It also answers the
    clients of OpenAI, Cohere, Jina and text-embeddings-inference. The pages / and /docs show it in a browser.
    """
    from bge_integrations import ModelCache
    from bge_integrations.serve import create_app, run
    from bge_integrations.serve.models import core_of

    if not models and not auto:
        raise typer.BadParameter("Name at least one model.", param_hint="MODELS")
    keys = _keys(api_key_file)
    local = socket is None and host in LOOPBACK
    if not (socket or local or keys or no_auth):
        why = f"{host} can be reached from other machines: give --api-key-file, or --no-auth if that is meant."
        raise typer.BadParameter(why, param_hint="--host")
    cache = ModelCache(budget, max_waiting=max_waiting)
    shared = {"like": like, "device": device, "dtype": dtype, "backend": backend, "cache": cache}
    app = create_app(
        [core_of(model, shared) for model in models or ()], cache=cache, api_keys=keys, max_body=max_body,
        hosts=allow_host or ([] if local else None), max_texts=max_texts, any_model=auto,
    )  # fmt: skip
    listener = run.listen_on_path(socket) if socket else run.listen_on_port(host, port)
    where = f"unix://{socket.absolute()}" if socket else "http://{}:{}".format(*listener.getsockname()[:2])
    typer.echo(f"bge serves {', '.join(models or ['what its clients ask for'])} at {where}", err=True)
    try:
        run.run(app, listener, drain=drain, idle_exit=600 if auto and idle_exit is None else idle_exit)
    finally:
        if socket:
            socket.unlink(missing_ok=True)


def _keys(file: Path | None) -> list[str]:
    """Return the keys of a file; one that is empty lets nobody in, so it is refused."""
    if file is None:
        return []
    keys = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not keys:
        raise typer.BadParameter(f"{file} holds no key.", param_hint="--api-key-file")
    return keys
