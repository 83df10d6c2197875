# pyright: basic, reportMissingImports=false, reportGeneralTypeIssues=false
# (Triton compiles the functions below from their source; what a type checker infers about them is not so.)
"""Device functions of the triton backend: one program scores some resident items against some streamed ones.

A tile holds [ROWS, COLS] similarities. The resident side has all tokens of its items in it: ROWS = ITEMS_Q items x
SLOTS_Q slots. The streamed side passes through it SLOTS_C slots of ITEMS_C items at a time, COLS in all, and the
reductions along it continue from tile to tile:
    ROW   inner along the streamed tokens (continues), then outer along the resident ones (once, at the end)
    COL   inner along the resident tokens (once in each tile), then outer along the streamed ones (continues)
Tokens come as given; x = <token, token> / (norms), times log2(e) / inner temperature, so that exp is exp2. With
p = softmax(x), for the value v of a reduction:
    softmax    v = sum p x         dv/dx = p (1 + ln 2 (x - v))
    logsumexp  v = log2 sum 2^x    dv/dx = p
    max        v = max x           dv/dx = [x = v] / number of ties
Masked similarities are LOWEST, which is finite: nothing times a weight of 0 is ever NaN.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ..spec import LOWEST as _LOWEST

LOWEST = tl.constexpr(_LOWEST)
# Where maxima begin: below LOWEST in units of any temperature.
FLOOR = tl.constexpr(-3e38)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def step(x, top, total, moment, AXIS: tl.constexpr, KIND: tl.constexpr, TIES: tl.constexpr):
    """Continue a reduction by x along AXIS. Its state: the top so far; the sum of 2^(x - top), or with TIES how many
    are the top; for softmax the sum of x 2^(x - top)."""
    new = tl.maximum(top, tl.max(x, AXIS))
    if KIND == "max":
        if TIES:
            here = tl.sum(tl.where(x == tl.expand_dims(new, AXIS), 1.0, 0.0), AXIS)
            total = tl.where(new > top, 0.0, total) + here
    else:
        keep = tl.exp2(top - new)
        p = tl.exp2(x - tl.expand_dims(new, AXIS))
        total = total * keep + tl.sum(p, AXIS)
        if KIND == "softmax":
            moment = moment * keep + tl.sum(p * x, AXIS)
    return new, total, moment


@triton.jit
def reduce_tile(x, AXIS: tl.constexpr, KIND: tl.constexpr, TIES: tl.constexpr):
    """Reduce x along AXIS in one go: top, total and value."""
    top = tl.max(x, AXIS)
    total = top
    result = top
    if KIND == "max":
        if TIES:
            total = tl.sum(tl.where(x == tl.expand_dims(top, AXIS), 1.0, 0.0), AXIS)
    else:
        p = tl.exp2(x - tl.expand_dims(top, AXIS))
        total = tl.sum(p, AXIS)
        moment = total
        if KIND == "softmax":
            moment = tl.sum(p * x, AXIS)
        result = value(top, total, moment, KIND)
    return top, total, result


@triton.jit
def value(top, total, moment, KIND: tl.constexpr):
    """The value of a reduction that has ended; that of a linear one is the sum in `moment`."""
    result = top
    if KIND == "logsumexp":
        result = top + tl.log2(total)
    if KIND == "softmax":
        result = moment / total
    if KIND == "linear":
        result = moment
    return result


@triton.jit
def slope(x, top, total, value, factor, AXIS: tl.constexpr, KIND: tl.constexpr):
    """factor times the derivative of a reduction along AXIS by x."""
    factor = factor / total
    if KIND == "max":
        slope = tl.where(x == tl.expand_dims(top, AXIS), tl.expand_dims(factor, AXIS), 0.0)
    else:
        slope = tl.exp2(x - tl.expand_dims(top, AXIS))
        if KIND == "softmax":
            steep = factor * LN2
            slope *= tl.expand_dims(factor - steep * value, AXIS) + tl.expand_dims(steep, AXIS) * x
        else:
            slope *= tl.expand_dims(factor, AXIS)
    return slope


@triton.jit
def token_rows(index, item, end, width, slot, length, ITEMS: tl.constexpr, SLOTS: tl.constexpr):
    """The rows of tokens in the slots [ITEMS SLOTS] of some items; -1: an empty slot."""
    lane = tl.arange(0, ITEMS * SLOTS)
    item += lane // SLOTS
    slot += lane % SLOTS
    return tl.load(index + item * width + slot, mask=(item < end) & (slot < length), other=-1)


@triton.jit
def product(
    q, c, q_rows, c_rows, dim,
    ROWS: tl.constexpr, COLS: tl.constexpr, DEPTH: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The products [ROWS, COLS], fp32, of the rows of q and of c. EVEN: dim is a multiple of DEPTH."""
    d = tl.arange(0, DEPTH)
    q += q_rows.to(tl.int64)[:, None] * dim + d[None, :]
    c += c_rows.to(tl.int64)[None, :] * dim + d[:, None]
    q_real, c_real = (q_rows >= 0)[:, None], (c_rows >= 0)[None, :]
    total = tl.zeros((ROWS, COLS), tl.float32)
    for start in range(0, dim, DEPTH):
        if EVEN:
            a = tl.load(q, mask=q_real, other=0.0)
            b = tl.load(c, mask=c_real, other=0.0)
        else:
            inside = d < dim - start
            a = tl.load(q, mask=q_real & inside[None, :], other=0.0)
            b = tl.load(c, mask=c_real & inside[:, None], other=0.0)
        total = tl.dot(a, b, total, input_precision=PRECISION)
        q += DEPTH
        c += DEPTH
    return total


@triton.jit
def similarity(
    q, c, q_rows, c_rows, q_unit, c_unit, dim,
    MASKED: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr,
    DEPTH: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """The similarities x [ROWS, COLS]; the units are the factors of each token."""
    x = product(q, c, q_rows, c_rows, dim, ROWS, COLS, DEPTH, EVEN, PRECISION)
    x = x * q_unit[:, None] * c_unit[None, :]
    if MASKED:
        x = tl.where((q_rows >= 0)[:, None] & (c_rows >= 0)[None, :], x, LOWEST)
    return x


@triton.jit
def block(q_blocks, c_blocks, GROUP: tl.constexpr):
    """This program's block of either side: GROUP neighbours share their streamed items while those are in the L2."""
    pid = tl.program_id(0)
    first = pid // (GROUP * c_blocks) * GROUP
    size = tl.minimum(q_blocks - first, GROUP)
    pid = pid % (GROUP * c_blocks)
    return first + pid % size, pid // size


@triton.jit
def advance(
    x, c_rows, c_weights, ratio, row_top, row_total, row_moment, col_top, col_total, col_moment,
    INNER: tl.constexpr, OUTER: tl.constexpr, ROW: tl.constexpr, COL: tl.constexpr, TIES: tl.constexpr,
    ITEMS_Q: tl.constexpr, SLOTS_Q: tl.constexpr, ITEMS_C: tl.constexpr, SLOTS_C: tl.constexpr,
):  # fmt: skip
    """Take a tile x [ROWS, COLS] into the reductions along the streamed tokens: the inner one of ROW [ROWS, ITEMS_C]
    and the outer one of COL [ITEMS_Q, ITEMS_C]. Returns both, and the top, total and value [ITEMS_Q, COLS] of COL's
    inner reduction over the resident tokens in this tile."""
    y_top, y_total, y = col_top, col_top, col_top
    if ROW:
        row_top, row_total, row_moment = step(
            tl.reshape(x, (ITEMS_Q * SLOTS_Q, ITEMS_C, SLOTS_C)), row_top, row_total, row_moment, 2, INNER, TIES
        )
    if COL:
        y_top, y_total, y = reduce_tile(tl.reshape(x, (ITEMS_Q, SLOTS_Q, ITEMS_C * SLOTS_C)), 1, INNER, TIES)
        if OUTER == "linear":
            w = tl.load(c_weights + c_rows, mask=c_rows >= 0, other=0.0)
            col_moment += tl.sum(tl.reshape(y * w[None, :], (ITEMS_Q, ITEMS_C, SLOTS_C)), 2)
        else:
            z = tl.where((c_rows >= 0)[None, :], y * ratio, LOWEST)
            z = tl.reshape(z, (ITEMS_Q, ITEMS_C, SLOTS_C))
            col_top, col_total, col_moment = step(z, col_top, col_total, col_moment, 2, OUTER, TIES)
    return row_top, row_total, row_moment, col_top, col_total, col_moment, y_top, y_total, y


@triton.jit
def row_score(
    y, rows, weights, ratio,
    OUTER: tl.constexpr, ITEMS_Q: tl.constexpr, SLOTS_Q: tl.constexpr, ITEMS_C: tl.constexpr,
):  # fmt: skip
    """The outer reduction [ITEMS_Q, ITEMS_C] of y [ROWS, ITEMS_C] along the resident tokens."""
    if OUTER == "linear":
        w = tl.load(weights + rows, mask=rows >= 0, other=0.0)
        score = tl.sum(tl.reshape(y * w[:, None], (ITEMS_Q, SLOTS_Q, ITEMS_C)), 1)
    else:
        z = tl.where((rows >= 0)[:, None], y * ratio, LOWEST)
        _, _, score = reduce_tile(tl.reshape(z, (ITEMS_Q, SLOTS_Q, ITEMS_C)), 1, OUTER, False)
    return score


@triton.jit
def row_part(
    y, rows, weights, ratio, g,
    OUTER: tl.constexpr, ITEMS_Q: tl.constexpr, SLOTS_Q: tl.constexpr, ITEMS_C: tl.constexpr,
):  # fmt: skip
    """The gradient by y [ROWS, ITEMS_C], the values of the resident tokens, from g [ITEMS_Q, ITEMS_C] by the scores."""
    if OUTER == "linear":
        w = tl.load(weights + rows, mask=rows >= 0, other=0.0)
        part = tl.reshape(w, (ITEMS_Q, SLOTS_Q))[:, :, None] * g[:, None, :]
    else:
        z = tl.where((rows >= 0)[:, None], y * ratio, LOWEST)
        z = tl.reshape(z, (ITEMS_Q, SLOTS_Q, ITEMS_C))
        top, total, v = reduce_tile(z, 1, OUTER, True)
        part = slope(z, top, total, v, g, 1, OUTER)
    return tl.reshape(part, (ITEMS_Q * SLOTS_Q, ITEMS_C))


@triton.jit
def col_part(
    y, rows, weights, ratio, top, total, v, g,
    OUTER: tl.constexpr, ITEMS_Q: tl.constexpr, ITEMS_C: tl.constexpr, SLOTS_C: tl.constexpr,
):  # fmt: skip
    """The gradient by y [ITEMS_Q, COLS], the values of a tile's streamed tokens; top, total and v: of the outer."""
    if OUTER == "linear":
        w = tl.load(weights + rows, mask=rows >= 0, other=0.0)
        part = g[:, :, None] * tl.reshape(w, (ITEMS_C, SLOTS_C))[None, :, :]
    else:
        z = tl.where((rows >= 0)[None, :], y * ratio, LOWEST)
        part = slope(tl.reshape(z, (ITEMS_Q, ITEMS_C, SLOTS_C)), top, total, v, g, 2, OUTER)
    return tl.reshape(part, (ITEMS_Q, ITEMS_C * SLOTS_C))
