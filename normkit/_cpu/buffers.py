"""What the rows of the kernels' small arrays hold."""

from .geometry import ROW as ROW

# `work`, the buffers of a task in the accumulator's dtype, WORK_ROWS x ROW: first the numbers that go with an element ...
HIGH, LOW, RSTD, WEIGHT, BIAS = range(5)  # of the norm: the centre in two parts, the scale, the affine
SHIFT, SLOPE, GAIN = range(4, 7)  # and of its gradient, after WEIGHT
PIVOT, SET_PIVOT = HIGH, LOW  # of the statistics: of a lane, and of the sets one by one
# ... then the two sums and what means are relative to; a pass that writes results needs them no longer ...
TOTAL, TOTAL_OF_PRODUCTS, ORIGIN = range(4, 7)
BUFFER, BUFFER_DY = 7, 8  # ... and strided data in line.
WORK_ROWS = 9

# Moments of sets, float64; the mean has two parts. What normalizes has their scale in place of M2, and a gradient more.
MEAN, MEAN_LOW, M2 = range(3)
SET_RSTD, SET_SHIFT, SET_SLOPE, SET_GAIN = range(2, 6)
# And of a tile while its chunks are summed: what means are relative to, and the moments of a chunk.
CHUNK_ORIGIN, CHUNK_MEAN, CHUNK_M2 = range(3, 6)

# The same of small sets side by side, of each lane; of a gradient GAIN too, and TOTAL and TOTAL_OF_PRODUCTS by lane.
LANE_HIGH, LANE_LOW, LANE_RSTD, LANE_WEIGHT, LANE_BIAS, LANE_PIVOT, LANE_WAITS, LANE_SUM, LANE_PRODUCTS = range(WORK_ROWS)
