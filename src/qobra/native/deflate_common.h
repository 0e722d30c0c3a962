/* Raw deflate (RFC 1951): what its parts have in common. See deflate.h. */

#ifndef QOBRA_DEFLATE_COMMON_H
#define QOBRA_DEFLATE_COMMON_H

#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "bits are written as little-endian words"
#endif

enum {
    WINDOW = 4096,
    MIN_MATCH = 3,
    MAX_MATCH = 258,
    SEGMENT = 64 << 10,     /* bytes whose blocks are made together; no match crosses its end */
    PART = 4 << 10,         /* bytes after which a block may end */
    LEARN = 8 << 10,        /* bytes after which costs are learnt anew */
    PARTS = SEGMENT / PART,
    HASH_BITS = 13,         /* of four bytes */
    HASH3_BITS = 11,        /* of three */
    LITLENS = 286,
    DISTS = 30,
    END = 256,              /* the symbol that ends a block */
    CODE_BITS = 14,         /* so that four literals fit into a word */
    WHOLE = 24,             /* the bit from which on is said how many those below are */
    MISSES = 64,            /* literals in a row after which not every place is looked at */
    STRIDE = 32,            /* the longest step then */
    QUICK_BITS = 12,        /* of the hash of the quick way */
    UNIT = 16,              /* costs are in so many parts of a bit */
};

struct counts {
    uint32_t litlen[LITLENS];
    uint32_t dist[DISTS];
};

struct codes {
    uint16_t litlen[LITLENS + 2], dist[DISTS + 2];
    uint8_t litlen_bits[LITLENS + 2], dist_bits[DISTS + 2];
};

/* Where whole bytes go, and the bits that are not yet there. */
struct bit_writer {
    uint8_t *at;
    uint64_t bits;
    unsigned count;
};

/* Literals, and the match that follows them; length 0: none does. */
struct item {
    uint32_t literals;
    uint16_t length, dist;
};

struct deflater {
    /* Places + WINDOW + 1, modulo 2^16. In more data than that an old one may look like a new one. This does no harm, as
     * matches are compared with the data, and as so many places at most are looked at. */
    uint16_t head[1 << HASH_BITS];      /* of the last, 0: none */
    uint16_t head3[1 << HASH3_BITS];
    uint16_t prev[WINDOW];              /* of the one before, by the place modulo WINDOW */
    uint16_t worth[SEGMENT + 1];        /* what the bytes up to one cost as literals, modulo 2^16 */
    struct item items[SEGMENT / MIN_MATCH + PARTS + 1];
    uint32_t part_items[PARTS];         /* items up to the end of a part */
    uint32_t part_bytes[PARTS];         /* bytes up to there */
    struct counts parts[PARTS];
    struct counts seen;
    struct codes codes;
    uint32_t whole_literal[256];        /* codes, and from bit WHOLE on how many bits they are */
    uint32_t whole_length[MAX_MATCH + 1];   /* also with the extra bits of the length */
    uint64_t recent[1 << QUICK_BITS];   /* of the quick way: see deflate_quick.h */
    int32_t literal_cost[256];
    int32_t average_cost;               /* of a literal */
    int32_t length_cost[MAX_MATCH + 1];
    int32_t dist_cost[DISTS];
    int32_t least_cost;                 /* of any match */
    uint8_t length_slot[MAX_MATCH + 1];
    uint8_t dist_slot[WINDOW + 1];
    uint16_t log2[4096 + 1];
    struct bit_writer out;
    const uint8_t *out_end;
};

static const uint16_t length_base[29] = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                         31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
static const uint8_t length_extra[29] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2,
                                         2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
static const uint16_t dist_base[DISTS] = {1,   2,   3,   4,   5,   7,    9,    13,   17,   25,   33,   49,    65,    97,    129,
                                          193, 257, 385, 513, 769, 1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
static const uint8_t dist_extra[DISTS] = {0, 0, 0, 0, 1, 1, 2, 2,  3,  3,  4,  4,  5,  5,  6,
                                          6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13};

static inline uint32_t load32(const uint8_t *at)
{
    uint32_t value;
    memcpy(&value, at, 4);
    return value;
}

static inline uint64_t load64(const uint8_t *at)
{
    uint64_t value;
    memcpy(&value, at, 8);
    return value;
}

static inline unsigned log2_of(const struct deflater *self, uint32_t value)
{
    unsigned shift = value > 4096 ? 20 - __builtin_clz(value) : 0;   /* 1 to 4096 are in the table */
    return self->log2[value >> shift] + shift * UNIT;
}

static void add(struct counts *into, const struct counts *more)
{
    for (unsigned symbol = 0; symbol < LITLENS; symbol++)
        into->litlen[symbol] += more->litlen[symbol];
    for (unsigned symbol = 0; symbol < DISTS; symbol++)
        into->dist[symbol] += more->dist[symbol];
}

static uint32_t sum(const uint32_t *counts, unsigned size)
{
    uint32_t total = 0;
    for (unsigned symbol = 0; symbol < size; symbol++)
        total += counts[symbol];
    return total;
}

struct match {
    int32_t gain;       /* in UNITs of a bit */
    uint32_t length, dist;
};

static inline unsigned hash3(uint32_t value)
{
    return (value << 8) * 0x9E3779B1u >> (32 - HASH3_BITS);
}

static inline unsigned match_length(const uint8_t *one, const uint8_t *two, unsigned from, unsigned limit)
{
    unsigned length = from;
    while (length + 8 <= limit) {
        uint64_t differing = load64(one + length) ^ load64(two + length);
        if (differing)
            return length + (__builtin_ctzll(differing) >> 3);
        length += 8;
    }
    while (length < limit && one[length] == two[length])
        length++;
    return length;
}

static inline unsigned limit_of(uint32_t place, uint32_t end)
{
    return end - place < MAX_MATCH ? end - place : MAX_MATCH;
}

#endif
