"""The command `serve`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from ..hub import DEFAULT_MODEL

KEEP_ALIVE = 75  # seconds; clients let go of idle connections after 5 and more, and are to be the first to

__all__ = ["add_options", "serve"]


def serve(options: argparse.Namespace) -> None:
    """Embeddings, similarities and search over HTTP, in OpenAI's shape; for this machine alone by default."""
    try:
        import uvicorn

        from .app import create_app
    except ImportError as error:
        raise ImportError(f"serve: {error}: pip install 'beyondvl[serve]'") from error
    from ..models.auto import AutoModel
    from ..search.commands import open_index
    from .guard import is_loopback
    from .settings import Settings

    key = options.api_key or os.environ.get("BEYONDVL_API_KEY")
    local = is_loopback(options.host)
    if not local and not key:
        raise ValueError(f"--host {options.host}: others may call, expected --api-key or BEYONDVL_API_KEY")
    index, root = open_index(options) if options.folder else (None, None)
    name = options.model or (DEFAULT_MODEL if index is None else index.facts["model"]["name"])
    model = AutoModel.from_pretrained(name, dtype=options.dtype)
    settings = Settings(
        hosts=tuple(options.allow_host),
        any_host=not local and not options.allow_host,
        api_key=key,
        max_body=options.max_body << 20,
        max_items=options.max_items,
        max_batch=options.max_batch,
    )
    app = create_app(model, Path(name).name, settings, index, root)
    about = {"host": options.host, "port": options.port, "log_level": "warning", "server_header": False}
    uvicorn.run(app, **about, backlog=4096, timeout_keep_alive=KEEP_ALIVE)


def add_options(sub: argparse.ArgumentParser) -> None:
    """The options of the command."""
    sub.add_argument("folder", nargs="?", help="an indexed folder to search (beyondvl index FOLDER)")
    sub.add_argument("--index", help="where its index is, when it is not in the folder")
    sub.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    sub.add_argument("--port", type=int, default=8000, help="port (default 8000)")
    sub.add_argument("--allow-host", nargs="*", default=[], help="names by which others call it")
    sub.add_argument("--api-key", help="what callers have to show as Bearer; or BEYONDVL_API_KEY")
    sub.add_argument("--max-body", type=int, default=32, help="MiB of a request (default 32)")
    sub.add_argument("--max-items", type=int, default=256, help="items of a request (default 256)")
    sub.add_argument("--max-batch", type=int, default=64, help="items encoded at once (default 64)")
    sub.add_argument("--model", help="folder, hub id, or the shipped default; that of the index where there is one")
    sub.add_argument("--dtype", help="float32 (default), bfloat16, int8, fastest or auto")
