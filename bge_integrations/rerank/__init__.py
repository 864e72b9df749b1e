"""Queries and passages to relevance scores."""
