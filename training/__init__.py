"""Trains the pair that ships with the package: see README.md here."""
