"""Weights on devices: where they come from, where they live, when they leave."""
