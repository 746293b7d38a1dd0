/* A tile of a product: ROWS rows by up to 3 vectors of LANES columns, in registers from its first term to its last.

   Included by products.c once per instruction set, with TILE (the function's name), TARGET, LANES, ROWS, ELEMENT (what
   a panel consists of), VECTOR, LOAD, BROADCAST and MULTIPLY_ADD defined; undefines them. */

#define BODY(VECTORS, ROW, STEP)                                                                                       \
    do {                                                                                                               \
        VECTOR sum[ROWS][VECTORS];                                                                                     \
        for (int i = 0; i < ROWS; i++)                                                                                 \
            for (int v = 0; v < VECTORS; v++)                                                                          \
                sum[i][v] = (VECTOR){0};                                                                               \
        for (int64_t k = 0; k < depth; k++, a += STEP, b += VECTORS * LANES)                                           \
            for (int i = 0; i < ROWS; i++)                                                                             \
                for (int v = 0; v < VECTORS; v++)                                                                      \
                    sum[i][v] = MULTIPLY_ADD(BROADCAST(a + i * ROW), LOAD(b + v * LANES), sum[i][v]);                  \
        for (int i = 0; i < ROWS; i++)                                                                                 \
            for (int v = 0; v < VECTORS; v++)                                                                          \
                memcpy(tile + (i * VECTORS + v) * LANES, &sum[i][v], sizeof(VECTOR));                                  \
    } while (0)

TARGET static void TILE(const void *left, int by_rows, const void *right, int64_t depth, int64_t vectors, float *tile)
{
    const ELEMENT *a = left, *b = right;
    switch (vectors * 2 + (by_rows ? 1 : 0)) {
    case 2: BODY(1, 1, ROWS); break;
    case 3: BODY(1, depth, 1); break;
    case 4: BODY(2, 1, ROWS); break;
    case 5: BODY(2, depth, 1); break;
    case 6: BODY(3, 1, ROWS); break;
    case 7: BODY(3, depth, 1); break;
    }
}

#undef BODY
#undef TILE
#undef TARGET
#undef LANES
#undef ROWS
#undef ELEMENT
#undef VECTOR
#undef LOAD
#undef BROADCAST
#undef MULTIPLY_ADD
