"""The operators under torch.library, torch.compile, autocast, threads and the environment; and their errors."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

import multigrain as mg
from multigrain.kernels import ops, reference, table
from multigrain.kernels.spec import Operand, Spec, Unsupported
from tests.kernels.problems import Attentive
from tests.strategies import CASES, randomise

SOFT, HARD = Spec("softmax", 0.1, "softmax", 0.1, True), Spec("max", 1.0, "linear", 1.0, True)
ONE_WAY = Spec("logsumexp", 0.5, "logsumexp", 0.5, False)


def operand(items: int, length: int, seed: int, masked: bool = False, weighted: bool = False, **change) -> Operand:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(items, length, 4, generator=generator)
    real = torch.rand(items, length, generator=generator) < 0.7 if masked else None
    weights = torch.rand(items, length, generator=generator) if weighted else None
    return Operand(x, real, weights, True)._replace(**change)


def wanting(given: Operand) -> Operand:
    weights = None if given.weights is None else given.weights.requires_grad_()
    return given._replace(x=given.x.requires_grad_(), weights=weights)


CALLS = {
    "soft": (operand(3, 5, 0), operand(4, 2, 1), SOFT),
    "soft masked": (wanting(operand(3, 5, 0, masked=True)), wanting(operand(4, 2, 1, masked=True)), SOFT),
    "weights": (
        wanting(operand(3, 5, 0, masked=True, weighted=True)),
        wanting(operand(4, 2, 1, weighted=True)),
        HARD,
    ),
    "one way, one gradient": (wanting(operand(3, 5, 0)), operand(4, 2, 1, masked=True), ONE_WAY),
    "half": (
        wanting(operand(3, 5, 0, x=torch.randn(3, 5, 4).half())),
        wanting(operand(4, 2, 1, x=torch.randn(4, 2, 4).bfloat16())),
        SOFT,
    ),
    "not contiguous": (
        wanting(operand(3, 5, 0, x=torch.randn(5, 3, 4).transpose(0, 1))),
        wanting(operand(4, 2, 1, x=torch.randn(4, 4, 2).mT, normalize=False)),
        SOFT,
    ),
    "expanded": (
        wanting(operand(3, 5, 0, x=torch.randn(1, 5, 4).expand(3, 5, 4))),
        wanting(operand(4, 2, 1)),
        SOFT,
    ),
}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
def test_operators_keep_the_rules_of_torch_library(call, backward):
    query, candidate, spec = CALLS[call]
    arguments = (*ops._flat(query, candidate), *spec, "blocked")
    if not backward:
        torch.library.opcheck(torch.ops.multigrain.pair_scores.default, arguments)
        return
    grad = torch.randn(len(query.x), len(candidate.x))
    arguments = (grad, *(x.detach() if isinstance(x, Tensor) else x for x in arguments))
    torch.library.opcheck(torch.ops.multigrain.pair_scores_backward.default, arguments)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize("inner", ["max", "softmax", "logsumexp"])
def test_weights_of_a_linear_outer_reduction_have_their_gradient(inner, both, masked):
    """The reference judges; padding, whose weight is 0, gets none."""
    spec = Spec(inner, 0.3, "linear", 1.0, both)
    outcomes = []
    for score in (lambda *given: ops.fused_scores(*given, "blocked"), reference.scores):
        query, candidate = (operand(items, 4, items, masked, weighted=True) for items in (5, 6))
        sides = [x._replace(x=x.x.double(), weights=x.weights.double()) for x in (query, candidate)]
        if masked:
            sides = [x._replace(weights=x.weights * x.mask) for x in sides]
        if not both:
            sides[1] = sides[1]._replace(weights=None)
        leaves = [t for x in map(wanting, sides) for t in (x.x, x.weights) if t is not None]
        scores = score(*sides, spec)
        outcomes.append(
            [scores.detach(), *torch.autograd.grad(scores, leaves, torch.linspace(-1, 1, 30).view(5, 6).double())]
        )
    same(*outcomes, 1e-12)


def features(masked: bool = True, items: tuple[int, int] = (9, 8), dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """sentence, word, video, frame and the masks of words and frames."""
    generator = torch.Generator().manual_seed(0)
    q, c = items
    shapes = [(q, 16), (q, 7, 16), (c, 16), (c, 5, 16)]
    x = [torch.randn(*shape, generator=generator, dtype=dtype) for shape in shapes]
    masks = [torch.rand(*x[i].shape[:2], generator=generator) < 0.7 if masked else None for i in (1, 3)]
    return [*x, *masks]


def four_grains(backend: str | None, *more: mg.Grain) -> mg.MultiGrain:
    grains = (mg.VideoSentence(bilinear=16), mg.VideoWord(), mg.SentenceFrame("mean_max"), mg.FrameWord(bilinear=16))
    return randomise(mg.MultiGrain(*grains, *more, weights="learned", backend=backend))


def five_grains(backend: str | None) -> mg.MultiGrain:
    return four_grains(backend, mg.Grain("word", "frame", Attentive(), name="own"))


def scoring(module: mg.MultiGrain) -> Callable[..., Tensor]:
    def call(sentence, word, video, frame, word_mask, frame_mask):
        text = mg.Features(sentence=sentence, word=(word, word_mask))
        return module(text, mg.Features(video=video, frame=(frame, frame_mask)))

    return call


def outcome(module: nn.Module, call: Callable[..., Tensor], given: list[Tensor]) -> list[Tensor]:
    """The scores of a call, and the gradients by features and by the parameters of the module."""
    leaves = [x.detach().clone().requires_grad_() for x in given[:4]]
    scores = call(*leaves, *given[4:])
    module.zero_grad()
    scores.backward(torch.arange(scores.numel()).view(scores.shape).to(scores))
    grads = [x.grad for x in (*leaves, *module.parameters())]
    assert all(x is not None for x in grads)
    return [scores.detach(), *(x.clone() for x in grads)]


def same(actual: list[Tensor], expected: list[Tensor], tolerance: float = 1e-4) -> None:
    for a, b in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, b, atol=tolerance * max(1.0, float(b.abs().max())), rtol=0)


@pytest.fixture
def compiles():
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the compiler's warnings about its own future are not ours to fail on
        yield
    torch._dynamo.reset()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("backend", [None, "blocked"])
def test_a_scorer_compiles_to_one_graph(backend, masked, compiles, monkeypatch):
    """Four grains and a user's own; "auto" must not take the definition only because the problem is small."""
    monkeypatch.setattr(table, "SMALL", 0)
    given, module, definition = features(masked), five_grains(backend), five_grains("eager")
    compiled = torch.compile(scoring(module), fullgraph=True, backend="aot_eager")
    same(outcome(module, compiled, given), outcome(definition, scoring(definition), given))


def test_a_compiled_scorer_takes_batches_of_other_sizes(compiles, monkeypatch):
    monkeypatch.setattr(table, "SMALL", 0)
    module, definition = five_grains(None), five_grains("eager")
    compiled = torch.compile(scoring(module), fullgraph=True, backend="aot_eager")
    for items in ((9, 8), (6, 7), (1, 5)):
        given = features(items=items)
        same(outcome(module, compiled, given), outcome(definition, scoring(definition), given))


def test_the_default_compiler_keeps_scores_and_gradients(compiles):
    given, module, definition = features(), four_grains("blocked"), four_grains("eager")
    compiled = torch.compile(scoring(module), fullgraph=True)
    same(outcome(module, compiled, given), outcome(definition, scoring(definition), given))


def pair(items: tuple[int, int] = (9, 8)) -> tuple[mg.Features, mg.Features]:
    sentence, word, video, frame, word_mask, frame_mask = features(items=items)
    return mg.Features(sentence=sentence, word=(word, word_mask)), mg.Features(video=video, frame=(frame, frame_mask))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_autocast_changes_nothing_at_all(case):
    grain = mg.Grain("word", "frame", case.build().float())
    expected = grain(*pair(), "blocked")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        actual = grain(*pair(), "blocked")
    torch.testing.assert_close(actual, expected, atol=0, rtol=0)


def served(monkeypatch) -> list[str]:
    """The names of the backends that are asked, as they are asked."""
    seen: list[str] = []

    def watch(name, serve):
        def call(*arguments):
            seen.append(name)
            return serve(*arguments)

        return call

    rows = {name: watch(name, serve) for name, serve in table.BACKENDS.items()}
    monkeypatch.setattr(table, "BACKENDS", rows)
    for name, row in rows.items():
        monkeypatch.setattr(table, name, row)
    return seen


@pytest.mark.parametrize("small", [0, 10**9])
def test_auto_takes_blocks_where_there_is_something_to_gain(small, monkeypatch):
    monkeypatch.delenv("MULTIGRAIN_BACKEND", raising=False)
    monkeypatch.setattr(table, "SMALL", small)
    seen = served(monkeypatch)
    mg.Grain("word", "frame", "aosm")(*pair())
    assert seen == (["eager"] if small else ["blocked"])


def test_the_environment_names_the_backend_and_an_argument_overrules_it(monkeypatch):
    seen = served(monkeypatch)
    grain = mg.Grain("word", "frame", "aosm")
    monkeypatch.setenv("MULTIGRAIN_BACKEND", "blocked")
    grain(*pair())
    grain(*pair(), "eager")
    mg.MultiGrain(grain, backend="eager")(*pair())
    monkeypatch.setenv("MULTIGRAIN_BACKEND", "eager")
    mg.MultiGrain(grain)(*pair())
    assert seen == ["blocked", "eager", "eager", "eager"]


@pytest.mark.parametrize("value", ["", "auto"])
def test_an_empty_environment_variable_means_auto(value, monkeypatch):
    monkeypatch.setenv("MULTIGRAIN_BACKEND", value)
    same([mg.Grain("word", "frame", "aosm")(*pair())], [mg.Grain("word", "frame", "aosm")(*pair(), "eager")])


@pytest.mark.parametrize("grain", [mg.FrameWord(), mg.VideoSentence()], ids=["tokens", "vectors"])
def test_an_unknown_backend_is_an_error_that_lists_those_there_are(grain, monkeypatch):
    message = r"backend.*expected one of auto, triton, blocked, eager.*fastest"
    with pytest.raises(ValueError, match=message):
        grain(*pair(), "fastest")
    with pytest.raises(ValueError, match=message):
        mg.MultiGrain(grain, backend="fastest")
    monkeypatch.setenv("MULTIGRAIN_BACKEND", "fastest")
    with pytest.raises(ValueError, match=r"MULTIGRAIN_BACKEND.*expected one of auto, triton, blocked, eager.*fastest"):
        grain(*pair())


@pytest.mark.parametrize("aggregator", ["aosm", "mean_mean", mg.AOSM(query_tokens=7, candidate_tokens=5), Attentive()])
def test_triton_refuses_the_cpu_with_a_reason_and_auto_goes_on(aggregator, monkeypatch):
    grain = mg.Grain("word", "frame", aggregator)
    with pytest.raises(Unsupported, match="triton"):
        grain(*pair(), "triton")
    monkeypatch.setenv("MULTIGRAIN_BACKEND", "triton")
    with pytest.raises(Unsupported, match="triton"):
        grain(*pair())
    monkeypatch.delenv("MULTIGRAIN_BACKEND")
    monkeypatch.setattr(table, "SMALL", 0)
    same([grain(*pair()).detach()], [grain(*pair(), "eager").detach()])


def test_auto_falls_back_on_unsupported_and_on_nothing_else(monkeypatch):
    monkeypatch.setattr(table, "SMALL", 0)
    grain = mg.Grain("word", "frame", "aosm")
    expected = grain(*pair(), "eager")

    def raising(error):
        def serve(*_):
            raise error

        return serve

    monkeypatch.setattr(table, "blocked", raising(Unsupported("no")))
    same([grain(*pair())], [expected], 0.0)
    monkeypatch.setattr(table, "blocked", raising(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        grain(*pair())


@pytest.mark.parametrize("backend", ["auto", "blocked", "eager"])
def test_sides_that_do_not_fit_are_one_error_whoever_serves(backend):
    text, video = pair()
    grain = mg.FrameWord()
    with pytest.raises(ValueError, match="same width, got 16 and 5"):
        grain(text, mg.Features(frame=torch.randn(3, 2, 5)), backend)
    with pytest.raises(ValueError, match="same device, got cpu and meta"):
        grain(text, video.to("meta"), backend)
    with pytest.raises(ValueError, match=r"word mask: expected shape \[2, 3\], got \[3, 2\]"):
        mg.Features(word=(torch.randn(2, 3, 4), torch.ones(3, 2, dtype=torch.bool)))
    with pytest.raises(ValueError, match="word mask: expected device cpu"):
        mg.Features(word=(torch.randn(2, 3, 4), torch.ones(2, 3, dtype=torch.bool, device="meta")))
    with pytest.raises(TypeError, match=r"word mask: expected dtype torch\.bool"):
        mg.Features(word=(torch.randn(2, 3, 4), torch.ones(2, 3)))


@pytest.mark.parametrize("backend", ["auto", "blocked", "eager"])
def test_meta_tensors_score_to_a_shape(backend, monkeypatch):
    monkeypatch.setattr(table, "SMALL", 0)
    text, video = (side.to("meta") for side in pair())
    scores = four_grains(backend).to("meta")(text, video)
    assert (scores.device.type, scores.shape, scores.dtype) == ("meta", (9, 8), torch.float32)


def test_no_grad_and_inference_mode_score_alike_and_keep_no_graph():
    module = five_grains("blocked")
    expected = module(*pair())
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            scores = module(*pair())
        assert not scores.requires_grad
        same([scores], [expected.detach()], 0.0)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copied_scorer_scores_alike(copied):
    module = five_grains("blocked")
    module(*pair())  # nothing of a pass may stick to it
    twin = copied(module)
    same(outcome(twin, scoring(twin), features()), outcome(module, scoring(module), features()), 0.0)


def test_functional_call_replaces_parameters():
    module, other = five_grains("blocked"), randomise(five_grains("blocked"), seed=1)
    replaced = {name: p.detach().clone().requires_grad_() for name, p in other.named_parameters()}
    scores = torch.func.functional_call(module, replaced, pair())
    same([scores.detach()], [other(*pair()).detach()], 0.0)
    scores.sum().backward()
    assert all(p.grad is not None for p in replaced.values())
    assert all(p.grad is None for p in module.parameters())


def test_threads_score_at_once():
    module = five_grains("blocked")
    inputs = [features(items=(8 + i % 3, 9)) for i in range(12)]

    def run(given):
        leaves = [x.clone().requires_grad_() for x in given[:4]]
        scores = scoring(module)(*leaves, *given[4:])
        return [scores.detach(), *torch.autograd.grad(scores.sum(), leaves)]

    expected = [run(given) for given in inputs]
    with ThreadPoolExecutor(4) as pool:
        for actual, alone in zip(pool.map(run, inputs), expected, strict=True):
            same(actual, alone, 0.0)


def by_frames(transform, backend: str | None) -> Tensor:
    text, video = pair()
    video = video["frame"]

    def score(frame):
        return mg.FrameWord("mean_max")(text, mg.Features(frame=(frame, video.mask)), backend)

    return transform(score, video.features)


TRANSFORMS = {
    "grad": lambda score, x: torch.func.grad(lambda x: score(x).sum())(x),
    "jacrev": lambda score, x: torch.func.jacrev(lambda x: score(x).sum(0))(x),
    "jvp": lambda score, x: torch.func.jvp(score, (x,), (torch.ones_like(x),))[1],
    "vmap": lambda score, x: torch.func.vmap(score)(torch.stack([x, 2 * x, -x])),
    "forward": lambda score, x: forward_tangent(score, x),
}


def forward_tangent(score, x):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(score(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")  # forward mode, inside torch
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_auto_serves_whatever_transform_the_definition_serves(transform, monkeypatch):
    monkeypatch.setattr(table, "SMALL", 0)
    expected = by_frames(TRANSFORMS[transform], "eager")
    actual = by_frames(TRANSFORMS[transform], None)
    assert actual is not None
    same([actual], [expected])


def test_hooks_and_overrides_of_an_aggregator_are_honoured():
    """A kernel that replaces a module must not skip what its owner hung on it."""
    text, video = pair()
    plain = mg.Grain("word", "frame", "mean_max")(text, video, "blocked")

    class Doubled(mg.MeanMax):
        def forward(self, sim, query_mask=None, candidate_mask=None):
            return 2 * super().forward(sim, query_mask, candidate_mask)

    hooked, patched = mg.MeanMax(), mg.MeanMax()
    hooked.register_forward_hook(lambda module, inputs, scores: 2 * scores)
    original = patched.forward
    patched.forward = lambda *arguments: 2 * original(*arguments)
    for aggregator in (Doubled(), hooked, patched):
        same([mg.Grain("word", "frame", aggregator)(text, video, "blocked")], [2 * plain], 1e-6)
