"""The errors of the package; each message says what was given, what is possible and what to do.

BgeError
|-- UnknownModelError (LookupError)     an id that is not in the catalogue, or a folder whose use is unclear
|-- UnsupportedModelError (ValueError)  a known model, or a pipeline, that this version cannot run
|-- WrongKindError (TypeError)          a reranker given to an embedder, or the reverse
|-- MissingExtraError (ImportError)     an optional dependency is not installed
|-- MissingWeightsError (ValueError)    weights are absent, truncated, or lack a head or layer
|-- InputTooLongError (ValueError)      a text over the limit (on_truncate="raise"), or too long for the device's memory
|-- NonFiniteError (ArithmeticError)    the model gave NaN or infinity, in float32 too
|-- FingerprintMismatchError (ValueError)  a collection was filled by another model
|-- OverBudgetError (MemoryError)       a model that can never fit the cache's budget
|-- OverloadedError (RuntimeError)      too many calls are waiting
|-- DeviceLostError (RuntimeError)      the device failed, and computes nothing more in this process
|-- ForkedProcessError (RuntimeError)   a forked child cannot use what its parent had started
|-- ServerUnavailableError (ConnectionError)  the server that holds the models cannot be reached, or went away
|-- NotAllowedError (PermissionError)   the server that holds the models wants a key
`-- ClosedError (RuntimeError)          the engine or cache was closed while the call waited
"""


class BgeError(Exception):
    """Base of every error that this package raises on purpose."""


class UnknownModelError(BgeError, LookupError):
    """The model is not in the catalogue, and its files do not say how to use it."""


class UnsupportedModelError(BgeError, ValueError):
    """The model is known, but this version of the package cannot run it."""


class WrongKindError(BgeError, TypeError):
    """An embedder was given where a reranker is needed, or the reverse."""


class MissingExtraError(BgeError, ImportError):
    """An optional dependency is needed; the message names the extra to install."""


class MissingWeightsError(BgeError, ValueError):
    """Weights are absent, truncated or incomplete; nothing is ever initialised at random."""


class InputTooLongError(BgeError, ValueError):
    """A text has more tokens than the limit, or than the device's memory can take."""


class NonFiniteError(BgeError, ArithmeticError):
    """The model gave NaN or infinity for a text, in float32 too."""


class FingerprintMismatchError(BgeError, ValueError):
    """A collection was filled by another model than the one that now reads or fills it."""


class OverBudgetError(BgeError, MemoryError):
    """A model needs more bytes than the cache's budget can ever give."""


class OverloadedError(BgeError, RuntimeError):
    """Too many calls are waiting for one model."""


class DeviceLostError(BgeError, RuntimeError):
    """The device failed, and computes nothing more in this process: restart it."""


class ForkedProcessError(BgeError, RuntimeError):
    """A forked child process cannot use the device or imports that its parent had started; use `spawn`."""


class ClosedError(BgeError, RuntimeError):
    """The engine or cache was closed while the call waited for it, or the interpreter is ending."""


class ServerUnavailableError(BgeError, ConnectionError):
    """The server that holds the models cannot be reached, or went away before it answered."""


class NotAllowedError(BgeError, PermissionError):
    """The server that holds the models wants a key, and got none or another one."""
