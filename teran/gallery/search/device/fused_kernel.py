"""The scan in one kernel: cosines are reduced where they are made, and never written.

In the language of OpenAI's compiler Triton, which has nothing but the name in common with the
server, and comes with torch for GPUs. A program takes a tile of rows, wherever items begin in it,
and a block of lanes. What it finds of an item that other tiles have rows of, too, is put together
by atomic operations: so no row is multiplied twice, and none is padding.
"""

import triton
import triton.language as tl


# Or every size would be compiled anew where it is 1, or a multiple of 16.
@triton.jit(do_not_specialize=["count", "length", "blocks", "queries"])
def scan(
    rows, row_scale, lanes, lane_scale, query_of_lane, first_query, clamp, best_rows, sums,
    count, length, dim, blocks, queries, factor,
    ROWS: tl.constexpr, LANES: tl.constexpr, DIM: tl.constexpr,
    BEST_ROW: tl.constexpr, BEST_LANE: tl.constexpr, SCALED: tl.constexpr,
):  # fmt: skip
    """Find the best rows of lanes, and the sums of rows' best lanes.

    Args:
        rows: (count, dim), those of an item one after the other.
        row_scale: (count,) fp32, where `SCALED`.
        lanes: (blocks x LANES, dim); with `BEST_LANE` a query's lie in one block.
        lane_scale: (blocks x LANES,) fp32, where `SCALED`.
        query_of_lane: (blocks x LANES,) int32, -1 for padding.
        first_query: (blocks + 1,) int32, of every block, where `BEST_LANE`.
        clamp: (queries,) int8, whether a row's best lane counts as at least 0.
        best_rows: (count / length, blocks x LANES) fp32 of minus infinity, where `BEST_ROW`.
        sums: (count / length, queries) fp32 of zeros, where `BEST_LANE`.
        length: rows of an item.
        factor: every product is multiplied by it.
    """
    tile, block = tl.program_id(0) // blocks, tl.program_id(0) % blocks
    place = tile * ROWS + tl.arange(0, ROWS)
    inside = place < count
    row = place.to(tl.int64)
    lane = block * LANES + tl.arange(0, LANES)
    steps = tl.arange(0, DIM)
    summed = tl.zeros((ROWS, LANES), tl.int32 if SCALED else tl.float32)
    for at in range(0, dim, DIM):
        left = tl.load(rows + row[:, None] * dim + (at + steps)[None, :], mask=inside[:, None])
        right = tl.load(lanes + lane[None, :] * dim + (at + steps)[:, None])
        summed = tl.dot(left, right, summed, out_dtype=summed.dtype)
    cosine = summed.to(tl.float32) * factor
    if SCALED:
        by_row = tl.load(row_scale + row, mask=inside, other=0.0)
        cosine = cosine * by_row[:, None] * tl.load(lane_scale + lane)[None, :]

    item = place // length
    first = tile * ROWS // length
    end = (tl.minimum(tile * ROWS + ROWS, count) - 1) // length + 1
    if BEST_ROW:
        for one in range(first, end):
            mine = inside & (item == one)
            best = tl.max(tl.where(mine[:, None], cosine, float("-inf")), axis=0)
            tl.atomic_max(best_rows + one * (blocks * LANES) + lane, best, sem="relaxed")
    if BEST_LANE:
        owner = tl.load(query_of_lane + lane)
        for query in range(tl.load(first_query + block), tl.load(first_query + block + 1)):
            known = tl.where((owner == query)[None, :], cosine, float("-inf"))
            best = tl.max(known, axis=1)
            best = tl.where(tl.load(clamp + query) != 0, tl.maximum(best, 0.0), best)
            # Not summed here by item: the compiler can't reduce that once more for 10.0.
            tl.atomic_add(sums + item * queries + query, best, mask=inside, sem="relaxed")
