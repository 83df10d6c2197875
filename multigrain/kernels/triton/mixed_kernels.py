# pyright: basic, reportMissingImports=false, reportGeneralTypeIssues=false
"""The kernels of the triton backend for AOSM with mixing matrices: the inner level in both directions, its gradient.

Attention by one similarity over another: with p = softmax(x) along the tokens of an item, and W its matrix,
    v = W x    y = sum p v    dy/dx = p (ln 2 (v - y)) + p W    dy/dW_kj = p_k x_j
Notation as in tile.py, but each token keeps the slot that it was given in. ROW is the level along the streamed
tokens, one y for each resident token; COL is the converse, ROW of the transposed tile. Tensors that are exchanged with
the outer level have the axes [resident items, streamed items, slots of one of them].
"""

from __future__ import annotations

import triton
import triton.language as tl

from .kernels import VARYING
from .tile import FLOOR, LN2, LOWEST, block, similarity, token_rows


@triton.jit
def corner(w, width, row, col, length, SLOTS: tl.constexpr):
    """The places of the part [SLOTS, SLOTS] of a matrix from (row, col) on, and a mask of its first `length` slots."""
    row += tl.arange(0, SLOTS)
    col += tl.arange(0, SLOTS)
    return w + row[:, None] * width + col[None, :], (row < length)[:, None] & (col < length)[None, :]


@triton.jit
def mix(x, w, width, row, col, length, TRANSPOSED: tl.constexpr, ITEMS: tl.constexpr, SLOTS: tl.constexpr):
    """Multiply x [N, ITEMS SLOTS] by a part of a matrix, or by its transpose, item by item: no NaN reaches another."""
    place, inside = corner(w, width, row, col, length, SLOTS)
    part = tl.load(place, mask=inside, other=0.0)
    if TRANSPOSED:
        part = tl.trans(part)
    y = tl.dot(tl.reshape(x, (x.shape[0] * ITEMS, SLOTS)), part, input_precision="tf32x3")
    return tl.reshape(y, (x.shape[0], ITEMS * SLOTS))


@triton.jit
def by_matrix(a, x, ITEMS: tl.constexpr, SLOTS: tl.constexpr):
    """The gradient [SLOTS, SLOTS] by the matrix of the sum of a * mix(x, its transpose), both [N, ITEMS SLOTS].

    One product of all items with all, of which those with themselves count: it is the one that suits tensor cores.
    """
    lane = tl.arange(0, ITEMS * SLOTS) // SLOTS
    g = tl.dot(tl.trans(a), x, input_precision="tf32x3")
    g = tl.where(lane[:, None] == lane[None, :], g, 0.0)
    return tl.sum(tl.sum(tl.reshape(g, (ITEMS, SLOTS, ITEMS, SLOTS)), 2), 0)


@triton.jit
def keys(x, q_rows, c_rows, MASKED: tl.constexpr):
    """The keys of attention: x, with padding, where x is 0, at LOWEST."""
    if MASKED:
        x = tl.where((q_rows >= 0)[:, None] & (c_rows >= 0)[None, :], x, LOWEST)
    return x


@triton.jit
def attend(key, v, top, total, moment, ITEMS: tl.constexpr, SLOTS: tl.constexpr):
    """Continue attention by key over v, both [N, ITEMS SLOTS]: the top so far [N, ITEMS], the sum of 2^(key - top),
    and that of v 2^(key - top)."""
    key = tl.reshape(key, (key.shape[0], ITEMS, SLOTS))
    new = tl.maximum(top, tl.max(key, 2))
    keep = tl.exp2(top - new)
    p = tl.exp2(key - new[:, :, None])
    total = total * keep + tl.sum(p, 2)
    moment = moment * keep + tl.sum(p * tl.reshape(v, (v.shape[0], ITEMS, SLOTS)), 2)
    return new, total, moment


@triton.jit
def weigh(key, norm, by_y, ITEMS: tl.constexpr, SLOTS: tl.constexpr):
    """Compute by_y p [N, ITEMS SLOTS] from the log2 of the sum of 2^key and the gradient by y, both [N, ITEMS]."""
    p = tl.exp2(tl.reshape(key, (key.shape[0], ITEMS, SLOTS)) - norm[:, :, None])
    return tl.reshape(p * by_y[:, :, None], (key.shape[0], ITEMS * SLOTS))


@triton.jit
def by_key(a, v, y, ITEMS: tl.constexpr, SLOTS: tl.constexpr):
    """The gradient [N, ITEMS SLOTS] by the key, from a = by_y p, v, and y [N, ITEMS]."""
    slope = tl.reshape(a, (a.shape[0], ITEMS, SLOTS)) * LN2
    slope *= tl.reshape(v, (v.shape[0], ITEMS, SLOTS)) - y[:, :, None]
    return tl.reshape(slope, (a.shape[0], ITEMS * SLOTS))


@triton.jit
def places(
    q_first, q_end, c_first, c_end, q_item, c_item, start, length, SLOTS_OF_Q: tl.constexpr,
    ITEMS_Q: tl.constexpr, SLOTS_Q: tl.constexpr, ITEMS_C: tl.constexpr, SLOTS_C: tl.constexpr,
):  # fmt: skip
    """The places of a program's part of [resident items, streamed items, length], and a mask of those that exist, in
    the shape [ITEMS_Q SLOTS_Q, ITEMS_C] with SLOTS_OF_Q, else [ITEMS_C SLOTS_C, ITEMS_Q] with slots from `start` on."""
    if SLOTS_OF_Q:
        lane = tl.arange(0, ITEMS_Q * SLOTS_Q)
        q, slot = (q_item + lane // SLOTS_Q)[:, None], (start + lane % SLOTS_Q)[:, None]
        c = (c_item + tl.arange(0, ITEMS_C))[None, :]
    else:
        lane = tl.arange(0, ITEMS_C * SLOTS_C)
        c, slot = (c_item + lane // SLOTS_C)[:, None], (start + lane % SLOTS_C)[:, None]
        q = (q_item + tl.arange(0, ITEMS_Q))[None, :]
    place = ((q - q_first) * (c_end - c_first) + c - c_first) * length + slot
    return place, (q < q_end) & (c < c_end) & (slot < length)


@triton.jit(do_not_specialize=VARYING)
def levels_kernel(
    row_y, row_norm, col_y, col_norm,
    q, c, q_index, c_index, q_scale, c_scale, q_mixing, c_mixing, c_lengths,
    q_first, q_end, c_first, c_end, q_width, c_width, q_length, c_length, dim, steep,
    ROW: tl.constexpr, COL: tl.constexpr, MASKED: tl.constexpr,
    SINGLE: tl.constexpr, ITEMS_Q: tl.constexpr, SLOTS_Q: tl.constexpr, ITEMS_C: tl.constexpr, SLOTS_C: tl.constexpr,
    DEPTH: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """The inner level of resident items q_first:q_end against streamed ones c_first:c_end.

    row_y, row_norm: [resident items, streamed items, q_length]: y of each resident token, in similarities, 0 at
    padding; and the log2 of the sum of 2^x. col_y, col_norm: [resident items, streamed items, c_length], of each
    streamed token. Slots after a program's longest streamed item are not written.
    q_mixing, c_mixing: [width, width] of either side. The rest is as for the scores, see kernels.py.
    """
    ROWS: tl.constexpr = ITEMS_Q * SLOTS_Q
    COLS: tl.constexpr = ITEMS_C * SLOTS_C
    q_block, c_block = block(tl.cdiv(q_end - q_first, ITEMS_Q), tl.cdiv(c_end - c_first, ITEMS_C), GROUP)
    q_item, c_item = q_first + q_block * ITEMS_Q, c_first + c_block * ITEMS_C
    q_rows = token_rows(q_index, q_item, q_end, q_width, 0, q_length, ITEMS_Q, SLOTS_Q)
    q_unit = tl.load(q_scale + q_rows, mask=q_rows >= 0, other=0.0) * steep
    length = SLOTS_C
    if not SINGLE:
        length = tl.maximum(tl.load(c_lengths + c_item), 1)  # the longest of this program's
    row_top = tl.full((ROWS, ITEMS_C), FLOOR, tl.float32)
    row_total = tl.zeros((ROWS, ITEMS_C), tl.float32)
    row_moment = tl.zeros((ROWS, ITEMS_C), tl.float32)
    for start in range(0, length, SLOTS_C):
        c_rows = token_rows(c_index, c_item, c_end, c_width, start, c_length, ITEMS_C, SLOTS_C)
        c_unit = tl.load(c_scale + c_rows, mask=c_rows >= 0, other=0.0)
        x = similarity(q, c, q_rows, c_rows, q_unit, c_unit, dim, False, ROWS, COLS, DEPTH, EVEN, PRECISION)
        key = keys(x, q_rows, c_rows, MASKED)
        if COL:
            top = tl.full((COLS, ITEMS_Q), FLOOR, tl.float32)
            none = tl.zeros((COLS, ITEMS_Q), tl.float32)
            v = mix(tl.trans(x), q_mixing, q_width, 0, 0, q_length, True, ITEMS_Q, SLOTS_Q)
            top, total, moment = attend(tl.trans(key), v, top, none, none, ITEMS_Q, SLOTS_Q)
            place, inside = places(
                q_first, q_end, c_first, c_end, q_item, c_item, start, c_length, False,
                ITEMS_Q, SLOTS_Q, ITEMS_C, SLOTS_C,
            )  # fmt: skip
            tl.store(col_y + place, moment / total / steep, mask=inside)
            tl.store(col_norm + place, top + tl.log2(total), mask=inside)
        if ROW:
            if SINGLE:
                v = mix(x, c_mixing, c_width, 0, 0, c_length, True, ITEMS_C, SLOTS_C)
            else:  # a tile of v takes all tiles of x
                v = tl.zeros((ROWS, COLS), tl.float32)
                for other in range(0, length, SLOTS_C):
                    rows = token_rows(c_index, c_item, c_end, c_width, other, c_length, ITEMS_C, SLOTS_C)
                    unit = tl.load(c_scale + rows, mask=rows >= 0, other=0.0)
                    u = similarity(q, c, q_rows, rows, q_unit, unit, dim, False, ROWS, COLS, DEPTH, EVEN, PRECISION)
                    v += mix(u, c_mixing, c_width, start, other, c_length, True, ITEMS_C, SLOTS_C)
            row_top, row_total, row_moment = attend(key, v, row_top, row_total, row_moment, ITEMS_C, SLOTS_C)
    if ROW:
        place, inside = places(
            q_first, q_end, c_first, c_end, q_item, c_item, 0, q_length, True, ITEMS_Q, SLOTS_Q, ITEMS_C, SLOTS_C
        )
        tl.store(row_y + place, row_moment / row_total / steep, mask=inside)
        tl.store(row_norm + place, row_top + tl.log2(row_total), mask=inside)


@triton.jit(do_not_specialize=VARYING)
def mixed_slopes_kernel(
    out, pitch, factor, q_partial, c_partial, row_y, row_norm, by_row_y, col_y, col_norm, by_col_y,
    q, c, q_index, c_index, q_scale, c_scale, q_mixing, c_mixing, c_lengths,
    q_first, q_end, c_first, c_end, q_width, c_width, q_length, c_length, dim, steep,
    ROW: tl.constexpr, COL: tl.constexpr, MASKED: tl.constexpr,
    SINGLE: tl.constexpr, ITEMS_Q: tl.constexpr, SLOTS_Q: tl.constexpr, ITEMS_C: tl.constexpr, SLOTS_C: tl.constexpr,
    DEPTH: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    """The gradient by the products of the tokens, from that by both y. levels_kernel wrote y and norm.

    out: [(q_end - q_first) q_length, (c_end - c_first) c_length], rows `pitch` apart, times *factor. Unless SINGLE,
    the slots after a program's longest streamed item are not written.
    q_partial [programs, q_length, q_length], c_partial [programs, c_length, c_length]: the gradient by the matrices,
    times steep. At padding by_y is anything finite: x and the units of tokens are 0 there.
    """
    ROWS: tl.constexpr = ITEMS_Q * SLOTS_Q
    COLS: tl.constexpr = ITEMS_C * SLOTS_C
    q_block, c_block = block(tl.cdiv(q_end - q_first, ITEMS_Q), tl.cdiv(c_end - c_first, ITEMS_C), GROUP)
    q_item, c_item = q_first + q_block * ITEMS_Q, c_first + c_block * ITEMS_C
    q_rows = token_rows(q_index, q_item, q_end, q_width, 0, q_length, ITEMS_Q, SLOTS_Q)
    q_unit = tl.load(q_scale + q_rows, mask=q_rows >= 0, other=0.0)
    scale = q_unit * tl.load(factor)
    q_unit *= steep
    length = SLOTS_C
    if not SINGLE:
        length = tl.maximum(tl.load(c_lengths + c_item), 1)
    if ROW:
        c_partial += tl.program_id(0).to(tl.int64) * c_length * c_length
        at, within = places(
            q_first, q_end, c_first, c_end, q_item, c_item, 0, q_length, True, ITEMS_Q, SLOTS_Q, ITEMS_C, SLOTS_C
        )
        y = tl.load(row_y + at, mask=within, other=0.0) * steep
        norm = tl.load(row_norm + at, mask=within, other=0.0)
        by_y = tl.load(by_row_y + at, mask=within, other=0.0)
    by_w = tl.zeros((SLOTS_Q, SLOTS_Q), tl.float32)
    for start in range(0, length, SLOTS_C):
        c_rows = token_rows(c_index, c_item, c_end, c_width, start, c_length, ITEMS_C, SLOTS_C)
        c_unit = tl.load(c_scale + c_rows, mask=c_rows >= 0, other=0.0)
        x = similarity(q, c, q_rows, c_rows, q_unit, c_unit, dim, False, ROWS, COLS, DEPTH, EVEN, PRECISION)
        key = keys(x, q_rows, c_rows, MASKED)
        by_x = tl.zeros((ROWS, COLS), tl.float32)
        if COL:
            place, inside = places(
                q_first, q_end, c_first, c_end, q_item, c_item, start, c_length, False,
                ITEMS_Q, SLOTS_Q, ITEMS_C, SLOTS_C,
            )  # fmt: skip
            z = tl.load(col_y + place, mask=inside, other=0.0) * steep
            z_norm = tl.load(col_norm + place, mask=inside, other=0.0)
            by_z = tl.load(by_col_y + place, mask=inside, other=0.0)
            a = weigh(tl.trans(key), z_norm, by_z, ITEMS_Q, SLOTS_Q)
            v = mix(tl.trans(x), q_mixing, q_width, 0, 0, q_length, True, ITEMS_Q, SLOTS_Q)
            by_v = mix(a, q_mixing, q_width, 0, 0, q_length, False, ITEMS_Q, SLOTS_Q)
            by_x += tl.trans(by_key(a, v, z, ITEMS_Q, SLOTS_Q) + by_v)
            by_w += by_matrix(a, tl.trans(x), ITEMS_Q, SLOTS_Q)
        if ROW:
            a = weigh(key, norm, by_y, ITEMS_C, SLOTS_C)
            if SINGLE:
                v = mix(x, c_mixing, c_width, 0, 0, c_length, True, ITEMS_C, SLOTS_C)
                by_x += mix(a, c_mixing, c_width, 0, 0, c_length, False, ITEMS_C, SLOTS_C)
                to, exists = corner(c_partial, c_length, 0, 0, c_length, SLOTS_C)
                tl.store(to, by_matrix(a, x, ITEMS_C, SLOTS_C), mask=exists)
            else:
                v = tl.zeros((ROWS, COLS), tl.float32)
                for other in range(0, length, SLOTS_C):
                    rows = token_rows(c_index, c_item, c_end, c_width, other, c_length, ITEMS_C, SLOTS_C)
                    unit = tl.load(c_scale + rows, mask=rows >= 0, other=0.0)
                    u = similarity(q, c, q_rows, rows, q_unit, unit, dim, False, ROWS, COLS, DEPTH, EVEN, PRECISION)
                    v += mix(u, c_mixing, c_width, start, other, c_length, True, ITEMS_C, SLOTS_C)
                    to, exists = corner(c_partial, c_length, start, other, c_length, SLOTS_C)
                    tl.store(to, by_matrix(a, u, ITEMS_C, SLOTS_C), mask=exists)
                    b = weigh(keys(u, q_rows, rows, MASKED), norm, by_y, ITEMS_C, SLOTS_C)
                    by_x += mix(b, c_mixing, c_width, other, start, c_length, False, ITEMS_C, SLOTS_C)
            by_x += by_key(a, v, y, ITEMS_C, SLOTS_C)
        row, col = tl.arange(0, ROWS), tl.arange(0, COLS)
        item, slot = q_item + row // SLOTS_Q, row % SLOTS_Q
        place = ((item - q_first) * q_length + slot).to(tl.int64)[:, None] * pitch
        inside = ((item < q_end) & (slot < q_length))[:, None]
        item, slot = c_item + col // SLOTS_C, start + col % SLOTS_C
        place += ((item - c_first) * c_length + slot)[None, :]
        inside &= ((item < c_end) & (slot < c_length))[None, :]
        by_x *= scale[:, None] * c_unit[None, :]
        tl.store(out + place, by_x.to(out.dtype.element_ty), mask=inside)
    if COL:
        q_partial += tl.program_id(0).to(tl.int64) * q_length * q_length
        place, inside = corner(q_partial, q_length, 0, 0, q_length, SLOTS_Q)
        tl.store(place, by_w, mask=inside)
