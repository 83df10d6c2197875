"""A grain as the similarity of sentence-transformers' MultiVectorEncoder: MaxSim is its own, any other is ours."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, BertTokenizer

import multigrain as mg
from multigrain.interop.sentence_transformers import as_similarity_fct

partner = pytest.importorskip("sentence_transformers", minversion="6.2")
evaluation = pytest.importorskip("sentence_transformers.multi_vector_encoder.evaluation")
losses = pytest.importorskip("sentence_transformers.multi_vector_encoder.losses")
scoring = pytest.importorskip("sentence_transformers.multi_vector_encoder.scoring")

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "ball", "key", "door", "the", "open", "put"]
QUERIES = ["a red ball", "open the door", "a blue key"]
DOCUMENTS = ["put a red ball", "the door", "a key a key a blue key"]
NEGATIVES = ["the blue door", "a ball", "open"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A MultiVectorEncoder of one small layer, from scratch."""
    folder: Path = tmp_path_factory.mktemp("bert")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=len(WORDS), max_position_embeddings=32, **sizes)).save_pretrained(folder)
    BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}).save_pretrained(folder)
    return partner.MultiVectorEncoder(str(folder), device="cpu").eval()


def inputs(model: Any, *columns: list[str]) -> list[dict[str, Tensor]]:
    """As the trainer's collator hands them to a loss: the queries, then a column for each document of a query."""
    tasks = ["query", *["document"] * (len(columns) - 1)]
    return [
        dict(model.preprocess(texts, task=task)) | {"task": task} for texts, task in zip(columns, tasks, strict=True)
    ]


def same(first: nn.Module, second: nn.Module, features: list[dict[str, Tensor]], labels: Tensor | None = None) -> None:
    """Equal losses with equal gradients."""
    found = []
    for loss in (first, second):
        loss.zero_grad()
        value = loss(features, labels)
        value.backward()
        found.append((value.detach(), [p.grad.clone() for p in loss.parameters() if p.grad is not None]))
    assert len(found[0][1]) > 10
    torch.testing.assert_close(found[1], found[0], atol=1e-6, rtol=1e-5)


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("settings", [{}, {"score_mini_batch_size": 2}, {"scale": 3.0}], ids=str)
@pytest.mark.parametrize("columns", [(QUERIES, DOCUMENTS), (QUERIES, DOCUMENTS, NEGATIVES)], ids=["pairs", "triplets"])
def test_max_sim_is_its_colbert_loss(model: Any, columns: tuple[list[str], ...], settings: dict[str, Any]):
    kind = losses.MultiVectorMultipleNegativesRankingLoss
    own, ours = kind(model, **settings), kind(model, similarity_fct=as_similarity_fct(mg.MaxSim()), **settings)
    same(own, ours, inputs(model, *columns))
    assert own.get_config_dict()["similarity_fct"] == "colbert_scores"
    assert "MaxSim" in ours.get_config_dict()["similarity_fct"]


def test_mean_max_is_its_mean_max_sim_and_its_cached_loss(model: Any):
    own = losses.MultiVectorMultipleNegativesRankingLoss(model, similarity_fct=scoring.mean_colbert_scores)
    ours = as_similarity_fct(mg.Grain("query", "document", mg.MeanMax(direction="query")))
    cached = losses.CachedMultiVectorMultipleNegativesRankingLoss(model, similarity_fct=ours, mini_batch_size=2)
    same(own, cached, inputs(model, QUERIES, DOCUMENTS))


def test_own_documents_are_for_distillation(model: Any):
    ours = as_similarity_fct("max_sim", own=True)
    features = inputs(model, QUERIES, DOCUMENTS, NEGATIVES)
    teacher = torch.tensor([[0.9, 0.1], [0.7, 0.2], [0.4, 0.6]])
    distill, margins = losses.MultiVectorDistillKLDivLoss, losses.MultiVectorMarginMSELoss
    same(distill(model), distill(model, similarity_fct=ours), features, teacher)
    same(margins(model), margins(model, similarity_fct=ours), features, teacher[:, 0] - teacher[:, 1])


def padded(generator: torch.Generator, *shape: int) -> tuple[Tensor, Tensor]:
    """Embeddings that are not of unit length, and a mask with at least one real token."""
    x = torch.randn(*shape, 8, generator=generator)
    return x, torch.arange(shape[-1]) < torch.randint(1, shape[-1] + 1, shape[:-1], generator=generator)[..., None]


def test_scores_are_its_own():
    generator = torch.Generator().manual_seed(0)
    (q, q_mask), (d, d_mask) = padded(generator, 3, 5), padded(generator, 3, 2, 6)
    max_sim, own = as_similarity_fct("max_sim"), as_similarity_fct("max_sim", own=True)
    masks = {"queries_mask": q_mask, "documents_mask": d_mask}
    expected = scoring.colbert_scores(q, d, **masks)
    assert expected.shape == (3, 6)
    close(max_sim(q, d, **masks), expected)
    close(max_sim(q[:2], d, queries_mask=q_mask[:2].float(), documents_mask=d_mask.long()), expected[:2])
    poisoned = d.masked_fill(~d_mask[..., None], torch.nan)
    close(max_sim(q, poisoned, **masks), expected)
    close(own(q, d, **masks), scoring.colbert_kd_scores(q, d, **masks))
    pairs = {"queries_mask": q_mask, "documents_mask": d_mask[:, 1]}
    close(own(q, d[:, 1], **pairs), scoring.colbert_scores_pairwise(q, d[:, 1], **pairs))
    half, halves = q.half(), d.half()
    assert max_sim(half, halves, **masks).dtype == torch.float32
    torch.testing.assert_close(
        max_sim(half, halves, **masks), scoring.colbert_scores(half, halves, **masks), atol=2e-2, rtol=1e-3
    )
    # Without masks: lists, or zeros where padded.
    similarity = partner.util.maxsim
    queries = [x[mask] for x, mask in zip(q, q_mask, strict=True)]
    documents = [x[mask] for x, mask in zip(d[0], d_mask[0], strict=True)]
    close(max_sim(queries, documents), similarity(queries, documents))
    zeros = q.masked_fill(~q_mask[..., None], 0)
    close(max_sim(zeros, documents), similarity(zeros, documents))
    close(max_sim(queries[0], documents), similarity(queries[0], documents))
    close(max_sim(queries[0], documents, torch.ones(len(queries[0]))), similarity(queries[0], documents))
    # A list tells its lengths: a token of zeros is one, whose similarity 0 may be the highest.
    query, zero = torch.tensor([[-1.0, 0.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0], [2.0, 0.0]])
    close(max_sim([query], [zero[:2], zero]), similarity([query], [zero[:2], zero]))
    assert max_sim([query], [zero[:2], zero]).tolist() == [[0.0, 0.0]]


@pytest.mark.parametrize("shape", [(6, 4), (24,), (2, 2, 6), (4, 5), (1, 6)])
def test_a_mask_of_another_shape_is_refused(shape: tuple[int, ...]):
    queries, documents = torch.ones(2, 3, 8), torch.ones(4, 6, 8)
    got = re.escape(str(list(shape)))
    with pytest.raises(ValueError, match=rf"documents_mask: expected shape \[4, 6\], got {got}"):
        as_similarity_fct("max_sim")(queries, documents, documents_mask=torch.ones(shape))
    with pytest.raises(ValueError, match=r"queries_mask: expected shape \[2, 3\], got \[3, 2\]"):
        as_similarity_fct("max_sim")(queries, documents, torch.ones(3, 2), torch.ones(4, 6))


def test_search_and_evaluators(model: Any):
    aosm = as_similarity_fct(mg.AOSM(temperature=0.1))
    queries, documents = model.encode_query(QUERIES), model.encode_document(DOCUMENTS)
    scores = aosm(queries, documents)
    grain = mg.Grain("query", "document", mg.AOSM(temperature=0.1))
    for i, query in enumerate(queries):
        for j, document in enumerate(documents):
            close(scores[i, j], grain(mg.Features(query=query[None]), mg.Features(document=document[None]))[0, 0])

    ids = [str(i) for i in range(3)]
    search = evaluation.MultiVectorInformationRetrievalEvaluator(
        dict(zip(ids, QUERIES, strict=True)),
        dict(zip(ids, DOCUMENTS, strict=True)),
        {i: {i} for i in ids},
        score_functions={"aosm": aosm},
        corpus_chunk_size=2,
        mrr_at_k=[3],
        write_csv=False,
    )
    assert search(model)["aosm_mrr@3"] == pytest.approx((1 / mg.metrics.ranks(scores)).mean().item())
    samples = [
        {"query": query, "positive": [document], "negative": NEGATIVES}
        for query, document in zip(QUERIES, DOCUMENTS, strict=True)
    ]
    settings = {"samples": samples, "write_csv": False}
    own = evaluation.MultiVectorRerankingEvaluator(**settings)(model)
    for batched in (True, False):
        ours = evaluation.MultiVectorRerankingEvaluator(
            similarity_fct=as_similarity_fct("max_sim"), use_batched_encoding=batched, **settings
        )
        assert ours(model) == pytest.approx(own)


def test_a_trainer_finds_the_scorers_parameters(model: Any):
    scorer = mg.MultiGrain(mg.Grain("q", "d", "max_sim"), mg.Grain("q", "d", "aosm", name="aosm"), weights="learned")
    loss = losses.MultiVectorMultipleNegativesRankingLoss(model, similarity_fct=as_similarity_fct(scorer))
    loss(inputs(model, QUERIES, DOCUMENTS)).backward()
    [weights] = [p for name, p in loss.named_parameters() if "weight_logits" in name]
    assert weights.grad is not None and weights.grad.abs().sum() > 0


def test_errors():
    with pytest.raises(TypeError, match="scorer: expected a Grain, an Aggregator or a MultiGrain, got Linear"):
        as_similarity_fct(nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"aggregator: expected one of .*max_sim"):
        as_similarity_fct("maxsim")
    with pytest.raises(ValueError, match=r"documents_embeddings: expected those of 2 queries, got shape \[3, 4, 8\]"):
        as_similarity_fct("max_sim", own=True)(torch.ones(2, 4, 8), torch.ones(3, 4, 8))
    for wrong, message in (
        ([], "expected at least one item"),
        ([torch.ones(8)], r"\[0\]: expected shape \[tokens, width\], got \[8\]"),
        ([torch.ones(2, 8), torch.ones(2, 7)], r"\[1\]: expected features of width 8, got 7"),
    ):
        with pytest.raises(ValueError, match=f"queries_embeddings{message}|queries_embeddings: {message}"):
            as_similarity_fct("max_sim")(wrong, torch.ones(3, 4, 8))
