# pyright: basic, reportMissingImports=false, reportGeneralTypeIssues=false
"""The two kernels of the triton backend; tile.py has their parts and the notation.

Both read the tokens where they are. An index says which of them are real: rows of tokens by item and slot, items
longest first, real tokens first, -1 at padding. A program skips the slots after its longest item.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .tile import (
    FLOOR,
    advance,
    block,
    col_part,
    reduce_tile,
    row_part,
    row_score,
    similarity,
    slope,
    token_rows,
    value,
)

# These change from launch to launch: to specialise on them would compile the kernels again and again.
VARYING = ("q_first", "q_end", "c_first", "c_end", "q_width", "c_width", "q_length", "c_length")


@triton.jit(do_not_specialize=VARYING)
def scores_kernel(
    out, out_q, out_c, q, c, q_index, c_index, q_scale, c_scale, q_weights, c_weights, q_order, c_order, c_lengths,
    q_first, q_end, c_first, c_end, q_width, c_width, q_length, c_length, dim, steep, ratio, unit,
    INNER: tl.constexpr, OUTER: tl.constexpr, ROW: tl.constexpr, COL: tl.constexpr, MASKED: tl.constexpr,
    SINGLE: tl.constexpr, ITEMS_Q: tl.constexpr, SLOTS_Q: tl.constexpr, ITEMS_C: tl.constexpr, SLOTS_C: tl.constexpr,
    DEPTH: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """Scores of resident items q_first:q_end against streamed ones c_first:c_end.

    out: fp32, strides out_q and out_c; the place of an item in it is given by q_order and c_order.
    q, c: [tokens, dim]; index [items, width]: rows of tokens, -1 at padding; lengths [items]: their real tokens,
    at most q_length and c_length; scale [tokens]: the factor of a token, 1 / norm.
    SINGLE: a tile holds all tokens of its streamed items.
    steep: log2(e) / inner temperature; ratio: inner temperature / outer temperature; unit: turns the value of the
    outer reduction into a direction's share of the score.
    """
    ROWS: tl.constexpr = ITEMS_Q * SLOTS_Q
    COLS: tl.constexpr = ITEMS_C * SLOTS_C
    q_block, c_block = block(tl.cdiv(q_end - q_first, ITEMS_Q), tl.cdiv(c_end - c_first, ITEMS_C), GROUP)
    q_item, c_item = q_first + q_block * ITEMS_Q, c_first + c_block * ITEMS_C
    q_rows = token_rows(q_index, q_item, q_end, q_width, 0, q_length, ITEMS_Q, SLOTS_Q)
    q_unit = tl.load(q_scale + q_rows, mask=q_rows >= 0, other=0.0) * steep

    row_top = tl.full((ROWS, ITEMS_C), FLOOR, tl.float32)
    row_total = tl.zeros((ROWS, ITEMS_C), tl.float32)
    row_moment = tl.zeros((ROWS, ITEMS_C), tl.float32)
    col_top = tl.full((ITEMS_Q, ITEMS_C), FLOOR, tl.float32)
    col_total = tl.zeros((ITEMS_Q, ITEMS_C), tl.float32)
    col_moment = tl.zeros((ITEMS_Q, ITEMS_C), tl.float32)
    if SINGLE:
        c_rows = token_rows(c_index, c_item, c_end, c_width, 0, c_length, ITEMS_C, SLOTS_C)
        c_unit = tl.load(c_scale + c_rows, mask=c_rows >= 0, other=0.0)
        x = similarity(q, c, q_rows, c_rows, q_unit, c_unit, dim, MASKED, ROWS, COLS, DEPTH, EVEN, PRECISION)
        row_top, row_total, row_moment, col_top, col_total, col_moment, _, _, _ = advance(
            x, c_rows, c_weights, ratio, row_top, row_total, row_moment, col_top, col_total, col_moment,
            INNER, OUTER, ROW, COL, False, ITEMS_Q, SLOTS_Q, ITEMS_C, SLOTS_C,
        )  # fmt: skip
    else:
        length = tl.maximum(tl.load(c_lengths + c_item), 1)  # the longest of this program's
        for start in range(0, length, SLOTS_C):
            c_rows = token_rows(c_index, c_item, c_end, c_width, start, c_length, ITEMS_C, SLOTS_C)
            c_unit = tl.load(c_scale + c_rows, mask=c_rows >= 0, other=0.0)
            x = similarity(q, c, q_rows, c_rows, q_unit, c_unit, dim, MASKED, ROWS, COLS, DEPTH, EVEN, PRECISION)
            row_top, row_total, row_moment, col_top, col_total, col_moment, _, _, _ = advance(
                x, c_rows, c_weights, ratio, row_top, row_total, row_moment, col_top, col_total, col_moment,
                INNER, OUTER, ROW, COL, False, ITEMS_Q, SLOTS_Q, ITEMS_C, SLOTS_C,
            )  # fmt: skip

    score = tl.zeros((ITEMS_Q, ITEMS_C), tl.float32)
    if ROW:
        y = value(row_top, row_total, row_moment, INNER)
        score += row_score(y, q_rows, q_weights, ratio, OUTER, ITEMS_Q, SLOTS_Q, ITEMS_C)
    if COL:
        score += value(col_top, col_total, col_moment, OUTER)
    place, inside = _pairs(out_q, out_c, q_order, c_order, q_item, q_end, c_item, c_end, ITEMS_Q, ITEMS_C)
    tl.store(out + place, score * unit, mask=inside)


@triton.jit(do_not_specialize=VARYING)
def slopes_kernel(
    out, pitch, factor, q_partial, c_partial, grad, grad_q, grad_c,
    q, c, q_index, c_index, q_scale, c_scale, q_weights, c_weights, q_order, c_order, c_lengths,
    q_first, q_end, c_first, c_end, q_width, c_width, q_length, c_length, dim, steep, ratio, unit, share,
    INNER: tl.constexpr, OUTER: tl.constexpr, ROW: tl.constexpr, COL: tl.constexpr, MASKED: tl.constexpr,
    SINGLE: tl.constexpr, ITEMS_Q: tl.constexpr, SLOTS_Q: tl.constexpr, ITEMS_C: tl.constexpr, SLOTS_C: tl.constexpr,
    DEPTH: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """The gradient by the products of the tokens of resident items q_first:q_end and streamed ones c_first:c_end.

    out: [(q_end - q_first) q_length, (c_end - c_first) c_length], rows `pitch` apart, times *factor. Unless SINGLE,
    the slots after a program's longest streamed item are not written.
    grad: the gradient by the scores, strides grad_q and grad_c. share: of a direction in a score.
    q_partial [streamed blocks, rows of out], c_partial [resident blocks, columns of out]: the gradient by the weights
    of a linear outer reduction, summed over the items of a block.
    The rest is as for the scores; unit turns y into a similarity.
    """
    ROWS: tl.constexpr = ITEMS_Q * SLOTS_Q
    COLS: tl.constexpr = ITEMS_C * SLOTS_C
    q_block, c_block = block(tl.cdiv(q_end - q_first, ITEMS_Q), tl.cdiv(c_end - c_first, ITEMS_C), GROUP)
    q_item, c_item = q_first + q_block * ITEMS_Q, c_first + c_block * ITEMS_C
    q_rows = token_rows(q_index, q_item, q_end, q_width, 0, q_length, ITEMS_Q, SLOTS_Q)
    q_unit = tl.load(q_scale + q_rows, mask=q_rows >= 0, other=0.0)
    place, inside = _pairs(grad_q, grad_c, q_order, c_order, q_item, q_end, c_item, c_end, ITEMS_Q, ITEMS_C)
    g = tl.load(grad + place, mask=inside, other=0.0).to(tl.float32) * share

    # The reductions along the streamed tokens, to their end.
    row_top = tl.full((ROWS, ITEMS_C), FLOOR, tl.float32)
    row_total = tl.zeros((ROWS, ITEMS_C), tl.float32)
    row_moment = tl.zeros((ROWS, ITEMS_C), tl.float32)
    col_top = tl.full((ITEMS_Q, ITEMS_C), FLOOR, tl.float32)
    col_total = tl.zeros((ITEMS_Q, ITEMS_C), tl.float32)
    col_moment = tl.zeros((ITEMS_Q, ITEMS_C), tl.float32)
    length = tl.maximum(tl.load(c_lengths + c_item), 1)
    if SINGLE:
        c_rows = token_rows(c_index, c_item, c_end, c_width, 0, c_length, ITEMS_C, SLOTS_C)
        c_unit = tl.load(c_scale + c_rows, mask=c_rows >= 0, other=0.0)
        x = similarity(q, c, q_rows, c_rows, q_unit * steep, c_unit, dim, MASKED, ROWS, COLS, DEPTH, EVEN, PRECISION)
        row_top, row_total, row_moment, col_top, col_total, col_moment, y_top, y_total, y = advance(
            x, c_rows, c_weights, ratio, row_top, row_total, row_moment, col_top, col_total, col_moment,
            INNER, OUTER, ROW, COL, True, ITEMS_Q, SLOTS_Q, ITEMS_C, SLOTS_C,
        )  # fmt: skip
    else:
        for start in range(0, length, SLOTS_C):
            c_rows = token_rows(c_index, c_item, c_end, c_width, start, c_length, ITEMS_C, SLOTS_C)
            c_unit = tl.load(c_scale + c_rows, mask=c_rows >= 0, other=0.0)
            x = similarity(
                q, c, q_rows, c_rows, q_unit * steep, c_unit, dim, MASKED, ROWS, COLS, DEPTH, EVEN, PRECISION
            )
            row_top, row_total, row_moment, col_top, col_total, col_moment, _, _, _ = advance(
                x, c_rows, c_weights, ratio, row_top, row_total, row_moment, col_top, col_total, col_moment,
                INNER, OUTER, ROW, COL, True, ITEMS_Q, SLOTS_Q, ITEMS_C, SLOTS_C,
            )  # fmt: skip

    # Back from the scores to the inner reduction of ROW.
    by_row, row_value, col_value = row_top, row_top, col_top
    if COL:
        col_value = value(col_top, col_total, col_moment, OUTER)
    lane = tl.arange(0, ROWS)
    item, slot = q_item + lane // SLOTS_Q, lane % SLOTS_Q
    q_place, q_inside = (item - q_first) * q_length + slot, (item < q_end) & (slot < q_length)
    if ROW:
        row_value = value(row_top, row_total, row_moment, INNER)
        by_row = row_part(row_value, q_rows, q_weights, ratio, g, OUTER, ITEMS_Q, SLOTS_Q, ITEMS_C)
        if OUTER == "linear":
            by_weights = tl.sum(tl.reshape(row_value, (ITEMS_Q, SLOTS_Q, ITEMS_C)) * g[:, None, :], 2) * unit
            q_partial += c_block.to(tl.int64) * (q_end - q_first) * q_length
            tl.store(q_partial + q_place, tl.reshape(by_weights, (ROWS,)), mask=q_inside)

    # Once more along the streamed tokens: to the products, and from the scores to the inner reduction of COL.
    scale = q_unit * tl.load(factor)
    if SINGLE:
        _slopes(
            out, pitch, c_partial, g, x, c_rows, c_weights, c_unit, scale, ratio, unit,
            row_top, row_total, row_value, by_row, col_top, col_total, col_value, y_top, y_total, y,
            q_place, q_inside, q_block, c_item, c_first, c_end, 0, c_length,
            INNER, OUTER, ROW, COL, ITEMS_Q, SLOTS_Q, ITEMS_C, SLOTS_C,
        )  # fmt: skip
    else:
        for start in range(0, length, SLOTS_C):
            c_rows = token_rows(c_index, c_item, c_end, c_width, start, c_length, ITEMS_C, SLOTS_C)
            c_unit = tl.load(c_scale + c_rows, mask=c_rows >= 0, other=0.0)
            x = similarity(
                q, c, q_rows, c_rows, q_unit * steep, c_unit, dim, MASKED, ROWS, COLS, DEPTH, EVEN, PRECISION
            )
            y_top, y_total, y = col_top, col_top, col_top
            if COL:
                y_top, y_total, y = reduce_tile(tl.reshape(x, (ITEMS_Q, SLOTS_Q, COLS)), 1, INNER, True)
            _slopes(
                out, pitch, c_partial, g, x, c_rows, c_weights, c_unit, scale, ratio, unit,
                row_top, row_total, row_value, by_row, col_top, col_total, col_value, y_top, y_total, y,
                q_place, q_inside, q_block, c_item, c_first, c_end, start, c_length,
                INNER, OUTER, ROW, COL, ITEMS_Q, SLOTS_Q, ITEMS_C, SLOTS_C,
            )  # fmt: skip


@triton.jit
def _slopes(
    out, pitch, c_partial, g, x, c_rows, c_weights, c_unit, scale, ratio, unit,
    row_top, row_total, row_value, by_row, col_top, col_total, col_value, y_top, y_total, y,
    q_place, q_inside, q_block, c_item, c_first, c_end, start, c_length,
    INNER: tl.constexpr, OUTER: tl.constexpr, ROW: tl.constexpr, COL: tl.constexpr,
    ITEMS_Q: tl.constexpr, SLOTS_Q: tl.constexpr, ITEMS_C: tl.constexpr, SLOTS_C: tl.constexpr,
):  # fmt: skip
    """Write a tile of the gradient by the products, and by the streamed weights."""
    ROWS: tl.constexpr = ITEMS_Q * SLOTS_Q
    COLS: tl.constexpr = ITEMS_C * SLOTS_C
    lane = tl.arange(0, COLS)
    item, slot = c_item + lane // SLOTS_C, start + lane % SLOTS_C
    c_place, c_inside = (item - c_first) * c_length + slot, (item < c_end) & (slot < c_length)
    by_x = tl.zeros((ROWS, COLS), tl.float32)
    if ROW:
        s = slope(tl.reshape(x, (ROWS, ITEMS_C, SLOTS_C)), row_top, row_total, row_value, by_row, 2, INNER)
        by_x = tl.reshape(s, (ROWS, COLS))
    if COL:
        by_y = col_part(y, c_rows, c_weights, ratio, col_top, col_total, col_value, g, OUTER, ITEMS_Q, ITEMS_C, SLOTS_C)
        s = slope(tl.reshape(x, (ITEMS_Q, SLOTS_Q, COLS)), y_top, y_total, y, by_y, 1, INNER)
        by_x += tl.reshape(s, (ROWS, COLS))
        if OUTER == "linear":
            by_weights = tl.sum(tl.reshape(y, (ITEMS_Q, ITEMS_C, SLOTS_C)) * g[:, :, None], 0) * unit
            c_partial += q_block.to(tl.int64) * (c_end - c_first) * c_length
            tl.store(c_partial + c_place, tl.reshape(by_weights, (COLS,)), mask=c_inside)
    by_x *= scale[:, None] * c_unit[None, :]
    to = q_place[:, None] * pitch + c_place[None, :]
    tl.store(out + to, by_x.to(out.dtype.element_ty), mask=q_inside[:, None] & c_inside[None, :])


@triton.jit
def _pairs(by_q, by_c, q_order, c_order, q_item, q_end, c_item, c_end, ITEMS_Q: tl.constexpr, ITEMS_C: tl.constexpr):
    """The places of the pairs of a program's items in a matrix of given strides, and a mask of those that exist."""
    q_item += tl.arange(0, ITEMS_Q)
    c_item += tl.arange(0, ITEMS_C)
    q_place = tl.load(q_order + q_item, mask=q_item < q_end, other=0).to(tl.int64) * by_q
    c_place = tl.load(c_order + c_item, mask=c_item < c_end, other=0).to(tl.int64) * by_c
    return q_place[:, None] + c_place[None, :], (q_item < q_end)[:, None] & (c_item < c_end)[None, :]


# Whether the kernels run on the CPU, as TRITON_INTERPRET=1 makes them.
INTERPRETED = not isinstance(scores_kernel, triton.runtime.JITFunction)
