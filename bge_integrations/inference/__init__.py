"""Inference, from texts to numbers: tokenizing, batching, the queue and the backends."""
