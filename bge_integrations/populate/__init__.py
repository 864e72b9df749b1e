"""Filling vector stores: run it again and nothing is computed or stored twice.

Example:
    ```python
    from bge_integrations.populate import populate

    report = populate(store, documents)
    ```
"""

from bge_integrations.populate.pipeline import PopulateReport, populate

__all__ = ["PopulateReport", "populate"]
