/* All that one instruction set does for a product with integer weights. */
#pragma once

#include "few_rows.h"
#include "halves.h"
#include "many_rows.h"
#include "rounding.h"

/* This instruction set's table. */
#define PRODUCT_KERNELS                                                                            \
    {.tile_columns = TILE,                                                                         \
     .tile_rows = TILE_ROWS,                                                                       \
     .round_group = round_group,                                                                   \
     .multiply_few = multiply_few,                                                                 \
     .multiply_tile = multiply_tile,                                                               \
     .widen = widen,                                                                               \
     .narrow = narrow}
