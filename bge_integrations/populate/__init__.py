"""Filling of vector stores; a second run computes and stores nothing twice.

Example:
    ```python
    from bge_integrations.populate import populate

    report = populate(store, documents)
    ```
"""

from bge_integrations.populate.pipeline import apopulate, populate
from bge_integrations.populate.report import Failure, PopulateReport, Progress

__all__ = ["Failure", "PopulateReport", "Progress", "apopulate", "populate"]
