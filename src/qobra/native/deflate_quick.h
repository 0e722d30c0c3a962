/* The quick way to find matches in deflate. See deflate.h.
 *
 * For each hash of four bytes the last four places are kept in one word, modulo WINDOW: 16 bits each, the last one lowest.
 * All four are compared with the data at once, without a branch. Whatever a word holds, each of its places is at a
 * distance of 1 to WINDOW and in the data, once the first byte is past, as those that were never set stand for the
 * first byte. So it need not be looked at whether a place is too far away: if the bytes are the same, it is a match.
 */

#ifndef QOBRA_DEFLATE_QUICK_H
#define QOBRA_DEFLATE_QUICK_H

#include "deflate_common.h"

enum {
    QUICK_LEFT = 16,        /* bytes at the end in which no match begins: eight are read at once */
    COMPARED = 7,           /* bytes that are compared at first */
    QUICK_MISSES = 32,      /* literals in a row after which not every place is looked at */
    QUICK_NICE = 64,        /* bytes of a match that is long enough */
    QUICK_LAZY = 12,        /* bytes of a match after which the next place is not looked at */
};

static const uint64_t each_lane = 0x0001000100010001;

static inline unsigned quick_hash(uint32_t value)
{
    return value * 0x9E3779B1u >> (32 - QUICK_BITS);
}

/* Put `place` into the tables. */
static inline void quick_insert(struct deflater *self, const uint8_t *data, uint32_t place)
{
    uint32_t value = load32(data + place);
    uint64_t *recent = &self->recent[quick_hash(value)];

    *recent = *recent << 16 | place % WINDOW;
    self->head3[hash3(value)] = place;
}

/* How many bytes are the same, COMPARED at most, in bits 3 and on; the bits below are set. */
static inline unsigned same_bytes(uint64_t differing)
{
    return __builtin_ctzll(differing | 1ull << 63) | 7;
}

static inline unsigned larger(unsigned one, unsigned two)
{
    return one > two ? one : two;
}

/* What `length` >= 3 bytes cost as literals: the first five by what they are, the others by the average. */
static inline int32_t cost_of(const struct deflater *self, const uint8_t *here, unsigned length)
{
    int32_t cost = self->literal_cost[here[0]] + self->literal_cost[here[1]] + self->literal_cost[here[2]];
    cost += length > 3 ? self->literal_cost[here[3]] : 0;
    cost += length > 4 ? self->literal_cost[here[4]] : 0;
    return cost + (length > 5 ? (int32_t)(length - 5) * self->average_cost : 0);
}

/* Put `place`, which is not the first, into the tables, and return the longest match there, if it is worth more than
 * `gain`.
 */
static inline __attribute__((always_inline)) struct match quick_find(
    struct deflater *self, const uint8_t *data, uint32_t place, uint32_t end, int32_t gain)
{
    const struct match none = {gain, 0, 0};
    const uint8_t *here = data + place;
    uint64_t value = load64(here);
    uint64_t *recent = &self->recent[quick_hash(value)];
    uint16_t *last3 = &self->head3[hash3(value)];
    uint32_t length, dist, dist3 = (place - 1 - *last3) % WINDOW + 1;
    /* How far behind the beginning of the window each place is. No lane borrows from the next. */
    uint64_t lanes = ((*recent | each_lane * WINDOW) - each_lane * (place % WINDOW)) & each_lane * (WINDOW - 1);
    size_t window = (size_t)place - WINDOW;     /* may be before the data, but no place is */
    const uint8_t *first = data + (window + (lanes & 0xFFFF)), *second = data + (window + (lanes >> 16 & 0xFFFF));
    const uint8_t *third = data + (window + (lanes >> 32 & 0xFFFF)), *fourth = data + (window + (lanes >> 48));
    /* The most bytes, and where they are as many the nearest. */
    unsigned best = larger(
        larger(same_bytes(load64(first) ^ value), same_bytes(load64(second) ^ value) - 1),
        larger(same_bytes(load64(third) ^ value) - 2, same_bytes(load64(fourth) ^ value) - 3));
    int32_t gained;

    *recent = *recent << 16 | place % WINDOW;
    *last3 = place;
    if (best >= 4 << 3) {
        unsigned lane = 7 - (best & 7);
        length = best >> 3;
        dist = WINDOW - (lanes >> 16 * lane & 0xFFFF);
        if (length == COMPARED) {
            unsigned limit = limit_of(place, end), enough = limit < QUICK_NICE ? limit : QUICK_NICE;
            length = match_length(here, here - dist, COMPARED, limit);
            for (lane++; lane < 4 && length < enough; lane++) {
                uint32_t other = WINDOW - (lanes >> 16 * lane & 0xFFFF);
                if (!((load64(here - other) ^ value) << 8) && here[length] == here[(ptrdiff_t)length - other]) {
                    unsigned found = match_length(here, here - other, COMPARED, limit);
                    if (found > length) {
                        length = found;
                        dist = other;
                    }
                }
            }
        }
    } else if (!((load32(here - dist3) ^ (uint32_t)value) & 0xFFFFFF)) {
        length = 3;
        dist = dist3;
    } else
        return none;
    gained = cost_of(self, here, length) - self->length_cost[length] - self->dist_cost[self->dist_slot[dist]];
    return gained > gain ? (struct match){gained, length, dist} : none;
}

#endif
