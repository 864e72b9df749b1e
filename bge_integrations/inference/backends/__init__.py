"""The backends that run a model, all behind the interface `Backend`."""
