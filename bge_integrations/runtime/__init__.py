"""Weights on devices: where they are found, how they are loaded and kept, and when they are freed."""
