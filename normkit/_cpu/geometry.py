"""How a `SetView` travels to the kernels: one integer array, since every argument of a Numba call costs time.

Row 0: where the segments of each kind start, and the positions of a chunk in the sums and in the apply pass. Row 1: the
scalars named below. Row 2: the positions of the apply pass, the offsets of the first element of x, y, weight and bias, where
results lie, and how many tiles. Row 3: the lanes of a set, where numbers that move come from, and the positions of a piece.
Then the segments, a row each: (size, strides of x, y, weight, bias), kept ones first, then reduced ones, then `walk`, the
reduced ones as the sums walk them. In a gradient y is dx, and dy takes the place of bias.
"""

from __future__ import annotations

from .._layout import TILE_WIDTH as TILE_WIDTH

KEPT, REDUCED, WALK = range(3)
TILE, ROWS, CENTER, PER_TASK, APPLY_LANES, AFFINE_VARIES, MOVES = COLUMNS = range(7)
APPLY_ROWS, MEMORY, TILES = 0, 5, 6
NEAR, FAR, PAST = range(3)  # results are in the caches; or in memory; or go to memory past the caches, in runs and periods
SIZE, X, Y, W, B = range(5)
DY = B
PER_CHUNK, PER_APPLY = 4, 5
LANE = 3
MODE, PIECE = 5, 6
HEADER = 4

# A lane of a tile is summed in PARTIALS partial sums, of STRIP_ROWS elements at a time, and these added up BLOCK_STRIPS at a
# time: 16 roundings in a row at most, not 64. A set of many lanes takes fewer partial sums, and fewer positions for HEAD.
PARTIALS, STRIP_ROWS, BLOCK_STRIPS = 8, 8, 8
# Elements of a buffer row: PARTIALS positions of a tile or more, and one more, since rows that are 4 KiB apart lie in the same
# sets of an L1 cache: group norm of channels-last (32, 512, 7, 7) takes 0.164 ms on one thread so, 0.178 without (Zen 4,
# 2026-11).
ROW = (PARTIALS + 1) * TILE_WIDTH
# Columns of small sets side by side that are normalized at once, half as many in a gradient, and rows at most: 16 KiB of
# float32. In ms on two threads, so and as tiles: instance norm of channels-last (64, 256, 7, 7) 0.107 / 0.142, its gradient
# 0.24 / 0.31, (1000, 24, 5, 5) 0.15 / 0.27, 0.29 / 0.48, (3966, 3, 11) 0.42 / 1.4, 0.39 / 0.91, group norm of (128, 128, 7, 7)
# in 8 groups 0.098 / 0.124, 0.16 / 0.21, of (32, 512, 7, 7) in 32 0.095 / 0.10, 0.19 / 0.19. Wider rows, and arrays that have
# more bytes together, are better read in line: (16, 1024, 7, 7) 0.13 / 0.11, (80, 512, 7, 7) 0.37 / 0.28; but not rows of no
# more columns than these: instance norm of (8000, 64, 3, 3) 1.7 / 3.6 (Zen 4, 2026-11).
COLUMNS_KEPT, ROWS_KEPT = 64, 64
WIDTH_KEPT, BYTES_KEPT = 512, 12 << 20
HEAD, HEAD_OF_RUN = 16, 32  # positions of a tile, and elements of a run, whose mean is the first pivot
BLOCK = 2048  # positions of a run summed in one go: 8 KiB of float32, in L1 for the second pass over the first block
# Positions per parallel piece of a set, if it lies in runs; of one whose neighbours in a tile do, an eighth of it, if that is
# so many: batch norm of 4096 x 256 would else be one task.
CHUNK, CHUNK_LEAST = 8 * BLOCK, 1 << 10
