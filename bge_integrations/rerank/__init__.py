"""Rerankers, which score how relevant a passage is to a query."""
