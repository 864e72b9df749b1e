"""Pure: which texts fit one forward."""

from dataclasses import dataclass


@dataclass(slots=True)
class BatchSize:
    """Grows text by text and knows what a forward over them costs.

    A padded forward costs its longest text times the number of texts, a packed one the sum of the lengths.
    """

    padded: bool
    count: int = 0
    longest: int = 0
    total: int = 0

    @property
    def tokens(self) -> int:
        """Tokens the forward computes, padding included."""
        return self.longest * self.count if self.padded else self.total

    def with_text(self, length: int) -> "BatchSize":
        return BatchSize(self.padded, self.count + 1, max(self.longest, length), self.total + length)

    def fits(self, length: int, budget: int) -> bool:
        """Whether one more text keeps the forward within `budget`; the first text always does."""
        return self.count == 0 or self.with_text(length).tokens <= budget
