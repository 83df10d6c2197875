"""The judge: what a score, a loss and a metric are, in Python floats, one (query, candidate) pair at a time.

Nothing of the package is imported and no tensor is touched: items are lists of tokens, a token is a list of
floats, a mask a list of booleans (True = a real token). Nothing is ever masked here: the tokens that a mask
declares padding are taken out before anything is reduced. Slow on purpose, and short enough to be read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

Vector = Sequence[float]
Matrix = Sequence[Sequence[float]]
Reduction = Callable[[Vector], float]

# Tokens, and the similarities of one pair.


def dot(a: Vector, b: Vector) -> float:
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def normalise(token: Vector) -> list[float]:
    """A zero token has no direction and stays zero."""
    norm = math.sqrt(dot(token, token))
    return [x / norm if norm > 0 else 0.0 for x in token]


def real(mask: Sequence[bool]) -> list[int]:
    return [position for position, is_real in enumerate(mask) if is_real]


def similarity(query: Matrix, candidate: Matrix, bilinear: Matrix | None = None) -> list[list[float]]:
    """Cosines [query token][candidate token] of two items; `bilinear` W gives (q W) . c instead of q . c."""
    queries, candidates = [normalise(t) for t in query], [normalise(t) for t in candidate]
    if bilinear is not None:
        queries = [[dot(t, column) for column in zip(*bilinear, strict=True)] for t in queries]
    return [[dot(q, c) for c in candidates] for q in queries]


# Reductions of a list of numbers to one.


def mean(x: Vector) -> float:
    return math.fsum(x) / len(x)


def softmax(x: Vector, temperature: float) -> list[float]:
    largest = max(x)
    exponentials = [math.exp((v - largest) / temperature) for v in x]
    return [e / math.fsum(exponentials) for e in exponentials]


def logsumexp(x: Vector, temperature: float) -> float:
    largest = max(x)
    return largest + temperature * math.log(math.fsum(math.exp((v - largest) / temperature) for v in x))


def attend(x: Vector, temperature: float, mixing: Matrix | None = None) -> float:
    """Sum of the numbers under their own softmax; `mixing` is applied to the attention after the softmax."""
    attention = softmax(x, temperature)
    if mixing is not None:
        attention = [dot(attention, column) for column in zip(*mixing, strict=True)]
    return dot(attention, x)


# Aggregators: the similarities of one pair, [query token][candidate token], to one score.


def both_ways(
    sim: Matrix, direction: str, over_query: tuple[Reduction, Reduction], over_candidate: tuple[Reduction, Reduction]
) -> float:
    """Each pair is (outer, inner): "query" is outer over query tokens of inner over candidate tokens."""
    outer_query, inner_query = over_query
    outer_candidate, inner_candidate = over_candidate
    query = outer_query([inner_candidate(row) for row in sim])
    candidate = outer_candidate([inner_query(column) for column in zip(*sim, strict=True)])
    return {"query": query, "candidate": candidate, "both": (query + candidate) / 2}[direction]


def aosm(
    sim: Matrix,
    direction: str = "both",
    temperature: float = 0.01,
    inner_query: Matrix | None = None,
    outer_query: Matrix | None = None,
    inner_candidate: Matrix | None = None,
    outer_candidate: Matrix | None = None,
) -> float:
    """X-CLIP's attention over the similarity matrix, with its four optional mixing matrices.

    With matrices for one side alone the other side is one token, and there is one list of numbers to attend to.
    """
    if inner_query is not None and inner_candidate is None:
        return attend([row[0] for row in sim], temperature, inner_query)
    if inner_candidate is not None and inner_query is None:
        return attend(sim[0], temperature, inner_candidate)

    def weighted(mixing: Matrix | None) -> Reduction:
        return lambda x: attend(x, temperature, mixing)

    over_query = weighted(outer_query), weighted(inner_query)
    over_candidate = weighted(outer_candidate), weighted(inner_candidate)
    return both_ways(sim, direction, over_query, over_candidate)


def pooled(outer: Reduction, inner: Reduction) -> Callable[..., float]:
    def aggregate(sim: Matrix, direction: str = "both") -> float:
        return both_ways(sim, direction, (outer, inner), (outer, inner))

    return aggregate


def max_sim(sim: Matrix, direction: str = "query") -> float:
    return both_ways(sim, direction, (math.fsum, max), (math.fsum, max))


def log_sum_exp(sim: Matrix, direction: str = "both", temperature: float = 0.1) -> float:
    def reduction(x: Vector) -> float:
        return logsumexp(x, temperature)

    return both_ways(sim, direction, (reduction, reduction), (reduction, reduction))


def isa(
    sim: Matrix,
    direction: str = "both",
    temperature: float = 0.01,
    inner_query: Matrix | None = None,
    outer_query: Matrix | None = None,
    inner_candidate: Matrix | None = None,
    outer_candidate: Matrix | None = None,
) -> float:
    """UCoFiA's softmax of a softmax; with the matrices of one side alone the other side is one token."""

    def weighted(mixing: Matrix | None) -> Reduction:
        def reduce(x: Vector) -> float:
            first = softmax(x, temperature)
            if mixing is not None:
                first = [dot(first, column) for column in zip(*mixing, strict=True)]
            return dot(softmax(first, temperature), x)

        return reduce

    if inner_query is not None and inner_candidate is None:
        return weighted(inner_query)([row[0] for row in sim])
    if inner_candidate is not None and inner_query is None:
        return weighted(inner_candidate)(sim[0])
    over_query = weighted(outer_query), weighted(inner_query)
    over_candidate = weighted(outer_candidate), weighted(inner_candidate)
    return both_ways(sim, direction, over_query, over_candidate)


def top_k(sim: Matrix, direction: str = "both", k: int | None = None, share: float = 0.25) -> float:
    def best(x: Vector) -> float:
        kept = math.ceil(share * len(x)) if k is None else k
        return mean(sorted(x, reverse=True)[:kept])

    return both_ways(sim, direction, (best, max), (best, max))


def normalized_softmax(sim: Matrix, direction: str = "both", temperature: float = 0.25) -> float:
    def reduction(x: Vector) -> float:
        return dot(softmax(normalise(x), temperature), x)

    return both_ways(sim, direction, (reduction, reduction), (reduction, reduction))


def token_weighted(
    sim: Matrix,
    direction: str = "both",
    query_weights: Vector | None = None,
    candidate_weights: Vector | None = None,
) -> float:
    """Under weights of the tokens of either side; None: every token weighs alike."""

    def weighted(weights: Vector | None) -> Reduction:
        return mean if weights is None else lambda x: dot(weights, x)

    return both_ways(sim, direction, (weighted(query_weights), max), (weighted(candidate_weights), max))


AGGREGATORS: dict[str, Callable[..., float]] = {
    "aosm": aosm,
    "isa": isa,
    "normalized_softmax": normalized_softmax,
    "token_weighted": token_weighted,
    "top_k": top_k,
    "mean_mean": pooled(mean, mean),
    "mean_max": pooled(mean, max),
    "max_mean": pooled(max, mean),
    "max_max": pooled(max, max),
    "max_sim": max_sim,
    "logsumexp": log_sum_exp,
}


def linear(x: Vector, weight: Matrix, bias: Vector) -> list[float]:
    return [dot(row, x) + b for row, b in zip(weight, bias, strict=True)]


def learned_weights(tokens: Matrix, first: tuple[Matrix, Vector], last: tuple[Matrix, Vector]) -> list[float]:
    """DRL's: a softmax over tokens of linear, ReLU, linear to one number."""
    hidden = [[max(0.0, x) for x in linear(token, *first)] for token in tokens]
    return softmax([linear(x, *last)[0] for x in hidden], 1.0)


def given_weights(weights: Vector) -> list[float]:
    size = math.fsum(abs(w) for w in weights)
    return [w / size if size > 0 else 0.0 for w in weights]


def aggregate(
    name: str, sim: Matrix, query_mask: Sequence[bool], candidate_mask: Sequence[bool], **options: object
) -> float:
    """One pair's score from its full similarity table; an item without a real token scores 0.

    Mixing matrices belong to positions: those of the real tokens are picked out of rows and columns alike.
    """
    rows, columns = real(query_mask), real(candidate_mask)
    if not rows or not columns:
        return 0.0
    for option, positions in (("query", rows), ("candidate", columns)):
        for level in ("inner", "outer"):
            matrix = options.get(f"{level}_{option}")
            if matrix is not None:
                options[f"{level}_{option}"] = [[matrix[i][j] for j in positions] for i in positions]
    return AGGREGATORS[name]([[sim[i][j] for j in columns] for i in rows], **options)


# Grains and their combination.


def grain(
    query: Matrix,
    candidate: Matrix,
    query_mask: Sequence[bool],
    candidate_mask: Sequence[bool],
    bilinear: Matrix | None,
    aggregator: str | None,
    **options: object,
) -> float:
    """One pair's score in one grain; without an aggregator both sides are one token, and it is their similarity."""
    sim = similarity(query, candidate, bilinear)
    if aggregator is None:
        ((only,),) = sim
        return only if query_mask[0] and candidate_mask[0] else 0.0
    return aggregate(aggregator, sim, query_mask, candidate_mask, **options)


def multi_grain(scores: Vector, weights: Vector | None = None) -> float:
    return mean(scores) if weights is None else dot(weights, scores)


# Poolers: the real tokens of an item, and for some a query, to one vector.


def weighted_sum(weights: Vector, tokens: Matrix) -> list[float]:
    return [dot(weights, column) for column in zip(*tokens, strict=True)]


def mean_pool(tokens: Matrix) -> list[float]:
    return [mean(column) for column in zip(*tokens, strict=True)]


def attention_pool(tokens: Matrix, weight: Vector) -> list[float]:
    return weighted_sum(softmax([dot(weight, token) for token in tokens], 1.0), tokens)


def softmax_pool(query: Vector, tokens: Matrix, temperature: float) -> list[float]:
    return weighted_sum(softmax([dot(normalise(query), normalise(t)) for t in tokens], temperature), tokens)


def layer_norm(x: Vector, weight: Vector, bias: Vector) -> list[float]:
    centre = mean(x)
    deviation = math.sqrt(mean([(v - centre) ** 2 for v in x]) + 1e-5)
    return [w * (v - centre) / deviation + b for v, w, b in zip(x, weight, bias, strict=True)]


def cross_attention_pool(
    query: Vector,
    tokens: Matrix,
    layers: dict[str, tuple[Matrix, Vector]],
    norms: dict[str, tuple[Vector, Vector]],
    heads: int,
) -> list[float]:
    """X-Pool's; layers are query, key, value, output and linear, norms input, attended and output."""
    q = linear(layer_norm(query, *norms["input"]), *layers["query"])
    inputs = [layer_norm(token, *norms["input"]) for token in tokens]
    keys, values = ([linear(x, *layers[name]) for x in inputs] for name in ("key", "value"))
    width, attended = len(q) // heads, []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        attention = softmax([dot(q[part], key[part]) / math.sqrt(width) for key in keys], 1.0)
        attended += weighted_sum(attention, [value[part] for value in values])
    out = layer_norm(linear(attended, *layers["output"]), *norms["attended"])
    return layer_norm([a + b for a, b in zip(out, linear(out, *layers["linear"]), strict=True)], *norms["output"])


# Losses: InfoNCE over a table of scores [query][candidate].


def cross_entropy(logits: Vector, positives: Sequence[bool], smoothing: float) -> float:
    """The target spreads 1 - smoothing evenly over the positives and smoothing evenly over everything."""
    normaliser = logsumexp(logits, 1.0)
    share = (1 - smoothing) / sum(positives)
    targets = [share * bool(p) + smoothing / len(logits) for p in positives]
    return -math.fsum(t * (x - normaliser) for t, x in zip(targets, logits, strict=True))


def info_nce(
    scores: Matrix,
    log_scale: float,
    query_ids: Sequence[int],
    candidate_ids: Sequence[int],
    smoothing: float = 0.0,
    reduction: str = "mean",
) -> float:
    logits = [[math.exp(log_scale) * s for s in row] for row in scores]
    positives = [[q == c for c in candidate_ids] for q in query_ids]

    def one_direction(logits: Matrix, positives: Sequence[Sequence[bool]]) -> float:
        return mean([cross_entropy(x, p, smoothing) for x, p in zip(logits, positives, strict=True)])

    forward = one_direction(logits, positives)
    backward = one_direction(list(zip(*logits, strict=True)), list(zip(*positives, strict=True)))
    return (forward + backward) / (2 if reduction == "mean" else 1)


def sigmoid(scores: Matrix, scale: float, bias: float, query_ids: Sequence[int], candidate_ids: Sequence[int]) -> float:
    """Summed over pairs."""
    signs = [[1 if q == c else -1 for c in candidate_ids] for q in query_ids]
    pairs = [(z, s) for row, of_row in zip(scores, signs, strict=True) for s, z in zip(row, of_row, strict=True)]
    return sum(math.log(1 + math.exp(-z * (scale * s + bias))) for z, s in pairs)


def ranking_row(
    row: Vector,
    positives: Sequence[bool],
    margin: float,
    hard_pool: int | None,
    hard_weight: float,
    easy_weight: float,
    form: str,
    over: str,
) -> float:
    """No two negatives are alike: the hard ones are the first in order."""
    negatives = sorted([s for s, positive in zip(row, positives, strict=True) if not positive], reverse=True)
    pool = 0 if hard_pool is None else hard_pool
    weights = [1.0 if hard_pool is None else hard_weight if i < pool else easy_weight for i in range(len(negatives))]
    found = []
    for best in [s for s, positive in zip(row, positives, strict=True) if positive]:
        steps = [margin + s - best for s in negatives]
        losses = [max(0.0, d) if form == "hinge" else math.log(1 + math.exp(d)) for d in steps]
        found.append(dot(weights, losses) / (max(1, len(negatives)) if over == "mean" else 1))
    return mean(found)


def token_nce(scores: Matrix, weights: Vector, owners: Sequence[int], candidates: list[int], scale: float) -> float:
    """Tokens of weights above 0 by candidates, both directions, their mean."""

    def share(t: int, j: int) -> float:
        return math.exp(scale * scores[t][j])

    everywhere = [sum(share(t, j) for j in range(len(candidates))) for t in range(len(weights))]
    rows = [
        -weights[t] / candidates.count(owners[t]) * math.log(share(t, j) / everywhere[t])
        for t in range(len(weights))
        for j in range(len(candidates))
        if owners[t] == candidates[j]
    ]
    columns = []
    for j, candidate in enumerate(candidates):
        own = [t for t in range(len(weights)) if owners[t] == candidate]
        whole = sum(weights[t] * share(t, j) for t in range(len(weights)))
        mass = sum(weights[t] for t in own)
        if own:
            columns.append(sum(-weights[t] / mass * math.log(weights[t] * share(t, j) / whole) for t in own))
    return (sum(rows) / sum(weights) + mean(columns)) / 2


# Metrics: ranks and what is said about them.


def rank(scores: Vector, positives: Sequence[bool], ties: str) -> float:
    """1 + the negatives strictly above the best positive; negatives level with it count 1/2, 0 or 1."""
    best = max(s for s, p in zip(scores, positives, strict=True) if p)
    negatives = [s for s, p in zip(scores, positives, strict=True) if not p]
    level = sum(s == best for s in negatives)
    return 1 + sum(s > best for s in negatives) + level * {"mean": 0.5, "optimistic": 0, "pessimistic": 1}[ties]


def summary(ranks: Vector) -> dict[str, float]:
    ordered, n = sorted(ranks), len(ranks)
    recalls = {f"R@{k}": 100 * sum(r <= k for r in ranks) / n for k in (1, 5, 10)}
    return recalls | {"MdR": (ordered[(n - 1) // 2] + ordered[n // 2]) / 2, "MnR": mean(ranks)}


def retrieval_metrics(scores: Matrix, targets: Sequence[int], protocol: str, ties: str) -> dict[str, dict[str, float]]:
    """Both directions of [text][video] scores; `targets` is the video of each text.

    Text to video ranks the videos for every text. Video to text ranks all captions and counts the best own one
    ("all_captions"; "diagonal" is the case of one caption a video), or first lets every video's captions speak
    through their maximum ("group_max").
    """
    videos = range(len(scores[0]))
    t2v = [rank(row, [v == target for v in videos], ties) for row, target in zip(scores, targets, strict=True)]
    v2t = []
    for video in videos:
        column = [row[video] for row in scores]
        if protocol == "group_max":
            column = [max(s for s, target in zip(column, targets, strict=True) if target == v) for v in videos]
            v2t.append(rank(column, [v == video for v in videos], ties))
        else:
            v2t.append(rank(column, [target == video for target in targets], ties))
    return {"t2v": summary(t2v), "v2t": summary(v2t)}
