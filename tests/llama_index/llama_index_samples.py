"""What several tests of LlamaIndex's classes use."""

from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events import BaseEvent
from llama_index.core.schema import NodeWithScore, QueryBundle

TEXTS = [
    "The giant panda is a bear that lives in the mountains of central China.",
    "Bread needs flour, water, salt and yeast.",
    "Which planet is the largest? Jupiter is the largest planet of the solar system.",
    "如何按照键的值对字典列表进行排序？",
    "",
    "Vitamin C is found in oranges,\nlemons and peppers.",
]


class Recorder(BaseEventHandler):
    events: list[BaseEvent] = []  # noqa: RUF012 - a pydantic field

    def handle(self, event: BaseEvent, **_: object) -> None:
        self.events.append(event)

    def named(self, name: str) -> list[BaseEvent]:
        return [event for event in self.events if event.class_name() == name]

    def rerank_names(self) -> list[str]:
        return [event.class_name() for event in self.events if "ReRank" in event.class_name()]


class ListRetriever(BaseRetriever):
    """Gives what it was made with."""

    def __init__(self, nodes: list[NodeWithScore]) -> None:
        self.nodes = nodes
        super().__init__()

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return self.nodes
