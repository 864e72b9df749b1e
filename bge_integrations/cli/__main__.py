"""`python -m bge_integrations.cli` is `bge`."""

from bge_integrations.cli import main

main()
