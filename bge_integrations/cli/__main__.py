"""`python -m bge_integrations.cli` runs `bge`."""

from bge_integrations.cli import main

main()
