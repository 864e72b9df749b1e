"""The command line `bge`: list models, index files, ask them, measure, embed and rerank JSON lines."""

import sys


def main() -> None:
    """Run the command line, or exit with a message that says what to install if the extra `cli` is missing."""
    try:
        from bge_integrations.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in {"typer", "rich"}:
            raise
        sys.exit(f'bge needs {error.name}. Install it: pip install "bge_integrations[cli]"')
    app()
