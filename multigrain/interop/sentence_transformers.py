"""sentence-transformers: a grain as the similarity of its MultiVectorEncoder, and as PyLate's `score_metric`.

Neither package is imported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from .. import checks
from ..aggregators import Aggregator, build_aggregator
from ..grains import Grain
from ._features import as_features, grain_names

Embeddings: TypeAlias = "Tensor | Sequence[Tensor]"


def as_similarity_fct(scorer: nn.Module | str, own: bool = False) -> SimilarityFct:
    """Make the `similarity_fct` of a loss or an evaluator of sentence-transformers' MultiVectorEncoder.

    Args:
        scorer: a Grain, an Aggregator or the name of one, or a MultiGrain, whose grains then all read the same tokens.
        own: score each query with its own documents alone, for MultiVectorDistillKLDivLoss and
            MultiVectorMarginMSELoss, in place of all with all.

    Raises:
        TypeError: a scorer that does not tell which grains it reads.
        ValueError: no aggregator of that name.
    """
    if isinstance(scorer, str):
        scorer = build_aggregator(scorer)
    if isinstance(scorer, Aggregator):
        scorer = Grain("query", "document", scorer)
    if not all(grain_names(scorer)):
        raise TypeError(f"scorer: expected a Grain, an Aggregator or a MultiGrain, got {type(scorer).__name__}")
    return SimilarityFct(scorer, own)


class SimilarityFct(nn.Module):
    """The function that `as_similarity_fct` makes: a module, so that a trainer finds the parameters of the scorer."""

    def __init__(self, scorer: nn.Module, own: bool) -> None:
        super().__init__()
        self.scorer, self.own = scorer, own

    def forward(
        self,
        queries_embeddings: Embeddings,
        documents_embeddings: Embeddings,
        queries_mask: Tensor | None = None,
        documents_mask: Tensor | None = None,
    ) -> Float[Tensor, "q c"] | Float[Tensor, "q"]:
        """Compute scores in fp32 (fp64 stays), on the device of the documents. Embeddings are compared as they are.

        Args:
            queries_embeddings: [Q, q, D], or a list of [q, D], or one [q, D].
            documents_embeddings: [B, N, t, D], the N documents of each of B queries; or [C, t, D], or a list of
                [t, D], or one [t, D].
            queries_mask, documents_mask: [Q, q], and [B, N, t] or [C, t] (of a list: as it is padded; beside one
                [t, D] also [t]); not 0 = a real token. None: all tokens of a list are real, and of a tensor those that
                are not zero throughout, as in sentence-transformers. An item without a real token scores 0 (there:
                below all others).

        Returns:
            [Q, B * N], the first of query i's own documents in column i * N, or [Q, C]. With own: [Q, N], or [Q].

        Raises:
            TypeError, ValueError: embeddings that do not fit together, or a mask of another shape.
        """
        documents, documents_mask = _padded("documents_embeddings", documents_embeddings, documents_mask)
        queries, queries_mask = _padded("queries_embeddings", queries_embeddings, queries_mask)
        queries, queries_mask = queries.to(documents.device), queries_mask.to(documents.device)
        names = grain_names(self.scorer)
        query = as_features("queries_embeddings", (queries, queries_mask), names[0])
        flat = documents.flatten(0, -3), documents_mask.flatten(0, -2)
        document = as_features("documents_embeddings", flat, names[1])
        if not self.own:
            return self.scorer(query, document)
        each = documents.shape[1] if documents.ndim == 4 else 1
        if len(document) != len(query) * each:
            raise ValueError(
                f"documents_embeddings: expected those of {len(query)} queries, got shape {list(documents.shape)}"
            )
        scores = torch.cat([self.scorer(query[i], document[i * each : (i + 1) * each]) for i in range(len(query))])
        return scores if documents.ndim == 4 else scores[:, 0]

    def get_config_dict(self) -> dict[str, Any]:
        """The settings that sentence-transformers writes on a model card."""
        return {"scorer": repr(self.scorer), "own": self.own}


def _padded(name: str, embeddings: Embeddings, mask: Tensor | None) -> tuple[Tensor, Bool[Tensor, "..."]]:
    """Return embeddings [..., length, D] and their mask [..., length]."""
    if isinstance(embeddings, Tensor):
        if embeddings.ndim == 2:
            embeddings, mask = embeddings[None], mask[None] if mask is not None and mask.ndim == 1 else mask
        real = embeddings.any(-1)
    else:
        embeddings, real = _of_list(name, embeddings)
    if mask is None:
        return embeddings, real
    # Never reshaped: a mask of as many numbers in another order would leave out the wrong tokens.
    side = name.removesuffix("_embeddings")
    return embeddings, checks.shaped(f"{side}_mask", mask, tuple(embeddings.shape[:-1])) != 0


def _of_list(name: str, items: Sequence[Tensor]) -> tuple[Tensor, Bool[Tensor, "b l"]]:
    """Pad a list of [length, D]; the mask follows its lengths, so that a token of zeros counts."""
    checks.require(len(items) > 0, name, "at least one item", list(items))
    width = None
    for i, item in enumerate(items):
        if checks.instance(f"{name}[{i}]", item, Tensor).ndim != 2:
            raise ValueError(f"{name}[{i}]: expected shape [tokens, width], got {checks.shape(item)}")
        width = item.shape[1] if width is None else width
        checks.width(f"{name}[{i}]", width, item.shape[1])
    padded = nn.utils.rnn.pad_sequence(list(items), batch_first=True)
    lengths = torch.tensor([len(item) for item in items], device=padded.device)
    return padded, torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]
