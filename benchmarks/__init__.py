"""Measured against the peers: `make bench`."""
