"""Token ids in, numbers out: tokenizing, batching, the queue and the backends."""
