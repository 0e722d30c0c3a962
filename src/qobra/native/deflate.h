/* Raw deflate (RFC 1951) with distances of at most 4 KiB: the only kind of stream that may be in a qcow2 image.
 *
 * Each cluster is compressed by itself. What a match is worth is told in bits: what its bytes would cost as literals,
 * by the frequencies seen so far, less what its length and its distance cost. Of the matches at a place the one that
 * is worth most is taken, unless that at the next place is worth more. So short matches far away, which cost more than
 * they save, are left out. After many literals in a row not every place is looked at, until a match is found. Where
 * the statistics of the contents change, a new block begins.
 */

#ifndef QOBRA_DEFLATE_H
#define QOBRA_DEFLATE_H

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
    MISSES = 64,            /* literals in a row after which not every place is looked at */
    STRIDE = 8,             /* the longest step then */
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

static struct deflater *deflater_new(void)
{
    struct deflater *self = malloc(sizeof *self);
    unsigned slot, value, part;

    if (self == NULL)
        return NULL;
    for (slot = 0; slot < 29; slot++)
        for (value = length_base[slot]; value <= MAX_MATCH && (slot == 28 || value < length_base[slot + 1]); value++)
            self->length_slot[value] = slot;
    self->length_slot[MAX_MATCH] = 28;
    for (slot = 0; slot < 24; slot++)
        for (value = dist_base[slot]; value < dist_base[slot + 1] && value <= WINDOW; value++)
            self->dist_slot[value] = slot;
    /* log2 of 1 to 4096 in UNITs: squaring gives one bit after the other. */
    self->log2[0] = 0;
    for (value = 1; value <= 4096; value++) {
        unsigned whole = 31 - __builtin_clz(value), fraction = 0;
        uint64_t x = (uint64_t)value << (31 - whole);   /* 1 <= x / 2^31 < 2 */
        for (part = UNIT / 2; part; part /= 2) {
            x = x * x >> 31;
            if (x >> 32) {
                x >>= 1;
                fraction += part;
            }
        }
        self->log2[value] = whole * UNIT + fraction;
    }
    return self;
}

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

/* -- what things cost ------------------------------------------------------------------------------------------- */

static uint32_t sum(const uint32_t *counts, unsigned size)
{
    uint32_t total = 0;
    for (unsigned symbol = 0; symbol < size; symbol++)
        total += counts[symbol];
    return total;
}

static inline uint32_t symbol_cost(const struct deflater *self, uint32_t count, unsigned of, unsigned most)
{
    unsigned cost = count ? of - log2_of(self, count) : most;
    return cost < UNIT ? UNIT : cost > most ? most : cost;
}

/* Costs by what was seen of the segment so far, and what the bytes from `from` to `end` are worth. */
static void learn(struct deflater *self, const uint8_t *data, size_t from, size_t end)
{
    uint32_t literal[256], all = sum(self->seen.litlen, LITLENS) + 1, dists = sum(self->seen.dist, DISTS);
    unsigned of = log2_of(self, all), of_dists = dists ? log2_of(self, dists) : 0, value;
    uint16_t worth = self->worth[from];

    for (value = 0; value < 256; value++)
        literal[value] = symbol_cost(self, self->seen.litlen[value], of, 13 * UNIT);
    for (value = MIN_MATCH; value <= MAX_MATCH; value++) {
        unsigned slot = self->length_slot[value];
        self->length_cost[value] =
            symbol_cost(self, self->seen.litlen[257 + slot], of, 12 * UNIT) + length_extra[slot] * UNIT;
    }
    for (value = 0; value < 24; value++)
        self->dist_cost[value] =
            (dists ? symbol_cost(self, self->seen.dist[value], of_dists, 8 * UNIT) : 9 * UNIT / 2) + dist_extra[value] * UNIT;
    self->least_cost = self->dist_cost[0];
    for (value = 1; value < 24; value++)
        if (self->dist_cost[value] < self->least_cost)
            self->least_cost = self->dist_cost[value];
    self->least_cost += self->length_cost[3];
    for (; from < end; from++)
        self->worth[from + 1] = worth += literal[data[from]];
}

/* What is assumed before anything was seen: literals as often as the bytes are, an eighth of the items matches. */
static void assume(struct deflater *self, const uint8_t *data, size_t size)
{
    unsigned slot;
    uint32_t matches;

    memset(&self->seen, 0, sizeof self->seen);
    for (size_t at = 0; at < size; at++)
        self->seen.litlen[data[at]]++;
    matches = size / 8 + 32;
    for (slot = 0; slot < 28; slot++)
        self->seen.litlen[257 + slot] = slot < 8 ? matches / 10 + 1 : matches / 100 + 1;
    self->worth[0] = 0;
    learn(self, data, 0, size);
    memset(&self->seen, 0, sizeof self->seen);
}

/* -- items ------------------------------------------------------------------------------------------------------ */

struct match {
    int32_t gain;       /* in UNITs of a bit */
    uint32_t length, dist;
};

static inline unsigned hash4(uint32_t value)
{
    return value * 0x9E3779B1u >> (32 - HASH_BITS);
}

static inline unsigned hash3(uint32_t value)
{
    return (value << 8) * 0x9E3779B1u >> (32 - HASH3_BITS);
}

/* `place` is in the data, and at least four bytes are left there. */
static inline void insert(struct deflater *self, const uint8_t *data, uint32_t place)
{
    uint32_t value = load32(data + place);
    uint16_t *head = &self->head[hash4(value)];
    self->prev[place % WINDOW] = *head;
    *head = self->head3[hash3(value)] = place + WINDOW + 1;
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

/* Put `place` into the tables, and return the match there that is worth most, if it is worth more than `gain`.
 * It has `limit` >= 4 bytes; `worth` is that of the place. Matches of at most `longest` bytes are not looked at. */
static inline __attribute__((always_inline)) struct match find(
    struct deflater *self, const uint8_t *data, uint32_t place, const uint16_t *worth, unsigned limit, int32_t gain, unsigned longest,
    unsigned depth, unsigned nice)
{
    struct match best = {gain, 0, 0};
    const uint8_t *here = data + place;
    uint32_t value = load32(here);
    uint16_t *head = &self->head[hash4(value)], *head3 = &self->head3[hash3(value)];
    uint16_t other = *head, other3 = *head3, now = place + WINDOW + 1;
    uint32_t dist;
    int32_t all = (uint16_t)(worth[3] - worth[0]);

    self->prev[place % WINDOW] = other;
    *head = *head3 = now;
    if (all - self->least_cost > gain && (dist = (uint16_t)(now - other3)) - 1 < WINDOW && !((load32(here - dist) ^ value) & 0xFFFFFF)) {
        int32_t gained = all - self->length_cost[3] - self->dist_cost[self->dist_slot[dist]];
        if (gained > best.gain)
            best = (struct match){gained, 3, dist};
    }
    for (; (dist = (uint16_t)(now - other)) - 1 < WINDOW; other = self->prev[(uint16_t)(other - 1) % WINDOW]) {
        const uint8_t *there = here - dist;
        if (load32(there + longest - 3) == load32(here + longest - 3) && load32(there) == value) {
            unsigned length = match_length(here, there, 4, limit);
            if (length > longest) {
                int32_t gained = (uint16_t)(worth[length] - worth[0]) - self->length_cost[length] - self->dist_cost[self->dist_slot[dist]];
                longest = length;
                if (gained > best.gain)
                    best = (struct match){gained, length, dist};
                if (length >= nice || length == limit)
                    break;
            }
        }
        if (!--depth)
            break;
    }
    return best;
}

static inline unsigned limit_of(uint32_t place, uint32_t end)
{
    return end - place < MAX_MATCH ? end - place : MAX_MATCH;
}

/* Learn costs from the parts up to `part`. */
static void learn_parts(struct deflater *self, const uint8_t *data, unsigned part, uint32_t place, uint32_t end)
{
    memset(&self->seen, 0, sizeof self->seen);
    for (unsigned from = part > 4 ? part - 4 : 0; from <= part; from++)
        add(&self->seen, &self->parts[from]);
    learn(self, data, place, end);
}

/* Turn a segment into items; how many they are. */
static size_t parse(
    struct deflater *self, const uint8_t *data, uint32_t base, uint32_t end, unsigned depth, unsigned nice, unsigned lazy)
{
    uint32_t place = base, stop, part = 0, next_part = base + PART, next_learn = base + LEARN;
    uint32_t literals = base;           /* where the literals since the last item begin */
    struct item *item = self->items;
    struct counts *counts = &self->parts[0];
    const uint16_t *worth = self->worth;

    assume(self, data + base, end - base < LEARN + 2 * MAX_MATCH ? end - base : LEARN + 2 * MAX_MATCH);
    memset(self->parts, 0, sizeof self->parts);
    while (end - place >= 4) {
        struct match found;
        if (place >= next_part) {
            if (place > literals)
                *item++ = (struct item){place - literals, 0, 0};
            literals = place;
            self->part_items[part] = item - self->items;
            self->part_bytes[part++] = place - base;
            while (next_part <= place)
                next_part += PART;
            if (place >= next_learn) {
                while (next_learn <= place)
                    next_learn += LEARN;
                stop = next_learn + 2 * MAX_MATCH < end ? next_learn + 2 * MAX_MATCH : end;
                learn_parts(self, data + base, part - 1, place - base, stop - base);
            }
            counts = &self->parts[part];
        }
        found = find(self, data, place, worth + (place - base), limit_of(place, end), 0, MIN_MATCH, depth, nice);
        if (!found.length) {
            uint32_t missed = place - literals;
            counts->litlen[data[place++]]++;
            if (missed >= MISSES) {
                missed = missed / MISSES < STRIDE ? missed / MISSES : STRIDE - 1;
                stop = end - place < missed ? end : place + missed;
                while (place < stop)
                    counts->litlen[data[place++]]++;
            }
            continue;
        }
        stop = place + 1;               /* places before are in the tables */
        while (found.length < lazy && end - place > found.length + 1) {
            /* Is the match at the next place worth more? One as long may be, if it is nearer. */
            unsigned less = found.length > MIN_MATCH ? found.length - 1 : MIN_MATCH;
            struct match next = find(
                self, data, place + 1, worth + (place + 1 - base), limit_of(place + 1, end), found.gain, less, depth, nice);
            stop = place + 2;
            if (!next.length)
                break;
            counts->litlen[data[place++]]++;
            found = next;
        }
        counts->litlen[257 + self->length_slot[found.length]]++;
        counts->dist[self->dist_slot[found.dist]]++;
        *item++ = (struct item){place - literals, found.length, found.dist};
        literals = place += found.length;
        for (; stop < place && stop + 4 <= end; stop++)
            insert(self, data, stop);
    }
    while (place < end)
        counts->litlen[data[place++]]++;
    if (place > literals)
        *item++ = (struct item){place - literals, 0, 0};
    for (; part < PARTS; part++) {
        self->part_items[part] = item - self->items;
        self->part_bytes[part] = end - base;
    }
    return item - self->items;
}

/* -- blocks ----------------------------------------------------------------------------------------------------- */

static inline void append(struct bit_writer *out, uint64_t value, unsigned count)
{
    out->bits |= value << out->count;
    out->count += count;
}

/* Leaves at most 7 bits, so that 57 can be appended. */
static inline void flush(struct bit_writer *out)
{
    memcpy(out->at, &out->bits, 8);
    out->at += out->count >> 3;
    out->bits >>= out->count & ~7u;
    out->count &= 7;
}

static void put(struct bit_writer *out, uint64_t value, unsigned count)
{
    append(out, value, count);
    flush(out);
}

/* Lengths of at most `limit` bits of a Huffman code for symbols that come `counts` times. */
static void huffman(const uint32_t *counts, unsigned size, unsigned limit, uint8_t *lengths)
{
    uint64_t order[LITLENS + 2];
    uint32_t tree[LITLENS + 2], of_length[33] = {0};
    unsigned used = 0, symbol, at, leaf, root, next;

    memset(lengths, 0, size);
    for (symbol = 0; symbol < size; symbol++)
        if (counts[symbol]) {
            uint64_t key = (uint64_t)counts[symbol] << 16 | symbol;
            order[used++] = key;
        }
    if (used <= 1) {
        /* A code has two symbols at least, for decoders that want it complete. */
        symbol = used ? order[0] & 0xFFFF : 0;
        lengths[symbol] = 1;
        lengths[symbol ? 0 : 1] = 1;
        return;
    }
    /* Sort, rarest first: Shell's way, which needs no memory. */
    for (unsigned gap = 132; gap; gap = gap == 132 ? 57 : gap == 57 ? 23 : gap == 23 ? 10 : gap == 10 ? 4 : gap == 4 ? 1 : 0)
        for (at = gap; at < used; at++) {
            uint64_t key = order[at];
            for (next = at; next >= gap && order[next - gap] > key; next -= gap)
                order[next] = order[next - gap];
            order[next] = key;
        }
    /* Moffat and Katajainen, "In-Place Calculation of Minimum-Redundancy Codes". */
    for (at = 0; at < used; at++)
        tree[at] = order[at] >> 16;
    tree[0] += tree[1];
    root = 0;
    leaf = 2;
    for (next = 1; next < used - 1; next++) {
        if (leaf >= used || tree[root] < tree[leaf]) {
            tree[next] = tree[root];
            tree[root++] = next;
        } else
            tree[next] = tree[leaf++];
        if (leaf >= used || (root < next && tree[root] < tree[leaf])) {
            tree[next] += tree[root];
            tree[root++] = next;
        } else
            tree[next] += tree[leaf++];
    }
    tree[used - 2] = 0;
    for (at = used - 2; at-- > 0;)
        tree[at] = tree[tree[at]] + 1;
    unsigned available = 1, inside = 0, depth = 0;
    root = used - 1;                    /* one above the last inner node */
    next = used;
    while (available) {
        while (root && tree[root - 1] == depth) {
            inside++;
            root--;
        }
        while (available > inside) {
            of_length[depth < 32 ? depth : 32]++;
            next--;
            available--;
        }
        available = 2 * inside;
        depth++;
        inside = 0;
    }
    /* Lengthen short codes until those that are too long fit. */
    uint32_t total = 0;
    for (at = limit + 1; at <= 32; at++) {
        of_length[limit] += of_length[at];
        of_length[at] = 0;
    }
    for (at = 1; at <= limit; at++)
        total += of_length[at] << (limit - at);
    while (total > 1u << limit) {
        of_length[limit]--;
        for (at = limit - 1; !of_length[at]; at--)
            ;
        of_length[at]--;
        of_length[at + 1] += 2;
        total--;
    }
    at = 0;
    for (depth = limit; depth; depth--)
        for (unsigned left = of_length[depth]; left; left--)
            lengths[order[at++] & 0xFFFF] = depth;
}

/* The codes of symbols from their lengths, as they are written: the first bit lowest. */
static void assign(const uint8_t *lengths, unsigned size, uint16_t *codes)
{
    uint16_t next[CODE_BITS + 2] = {0}, code;
    unsigned symbol, at, of_length[CODE_BITS + 1] = {0};

    for (symbol = 0; symbol < size; symbol++)
        of_length[lengths[symbol]]++;
    of_length[0] = 0;
    for (at = 1; at <= CODE_BITS; at++)
        next[at] = (next[at - 1] + of_length[at - 1]) << 1;
    for (symbol = 0; symbol < size; symbol++) {
        uint16_t reversed = 0;
        if (!lengths[symbol])
            continue;
        code = next[lengths[symbol]]++;
        for (at = lengths[symbol]; at; at--, code >>= 1)
            reversed = reversed << 1 | (code & 1);
        codes[symbol] = reversed;
    }
}

static uint64_t data_bits(const struct counts *counts, const uint8_t *litlen_bits, const uint8_t *dist_bits)
{
    uint64_t total = 0;
    for (unsigned symbol = 0; symbol < LITLENS; symbol++)
        total += (uint64_t)counts->litlen[symbol] * (litlen_bits[symbol] + (symbol > END ? length_extra[symbol - END - 1] : 0));
    for (unsigned symbol = 0; symbol < DISTS; symbol++)
        total += (uint64_t)counts->dist[symbol] * (dist_bits[symbol] + dist_extra[symbol]);
    return total;
}

/* `data` is what the items stand for. */
static void put_items(struct deflater *self, const struct codes *codes, const uint8_t *data, size_t from, size_t to)
{
    struct bit_writer out = self->out;      /* in registers: what is written to bytes may be anything to a compiler */

    for (; from < to; from++) {
        struct item item = self->items[from];
        const uint8_t *end = data + item.literals;
        for (; end - data >= 4; flush(&out))
            for (unsigned literal = 0; literal < 4; literal++, data++)
                append(&out, codes->litlen[*data], codes->litlen_bits[*data]);
        for (; data < end; data++)
            append(&out, codes->litlen[*data], codes->litlen_bits[*data]);
        flush(&out);
        if (item.length) {
            unsigned slot = self->length_slot[item.length];
            append(&out, codes->litlen[END + 1 + slot], codes->litlen_bits[END + 1 + slot]);
            append(&out, item.length - length_base[slot], length_extra[slot]);
            slot = self->dist_slot[item.dist];
            append(&out, codes->dist[slot], codes->dist_bits[slot]);
            append(&out, item.dist - dist_base[slot], dist_extra[slot]);
            flush(&out);
            data += item.length;
        }
    }
    put(&out, codes->litlen[END], codes->litlen_bits[END]);
    self->out = out;
}

static const uint8_t run_order[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
static const uint8_t run_extra[3] = {2, 3, 7};

/* Lengths of codes as runs: symbol | extra bits << 8. How many there are. */
static unsigned runs_of(const uint8_t *lengths, unsigned size, uint16_t *runs)
{
    unsigned at = 0, found = 0;
    while (at < size) {
        unsigned length = lengths[at], count = 1;
        while (at + count < size && lengths[at + count] == length)
            count++;
        at += count;
        if (!length) {
            for (; count >= 11; count -= count < 138 ? count : 138)
                runs[found++] = 18 | ((count < 138 ? count : 138) - 11) << 8;
            if (count >= 3) {
                runs[found++] = 17 | (count - 3) << 8;
                count = 0;
            }
        } else {
            runs[found++] = length;
            count--;
            for (; count >= 3; count -= count < 6 ? count : 6)
                runs[found++] = 16 | ((count < 6 ? count : 6) - 3) << 8;
        }
        while (count--)
            runs[found++] = length;
    }
    return found;
}

/* Write items as a block, in the shortest of its forms. 0 where there is no room for it. */
static int put_block(
    struct deflater *self, const uint8_t *data, size_t size, struct counts *counts, size_t from, size_t to, int is_last)
{
    struct codes *codes = &self->codes;
    struct bit_writer *out = &self->out;
    uint8_t lengths[LITLENS + DISTS + 4], run_bits[19], fixed_bits[LITLENS + 2], fixed_dist[DISTS];
    uint16_t runs[LITLENS + DISTS + 4], run_codes[19];
    uint32_t run_counts[19] = {0};
    unsigned litlens = LITLENS, dists = DISTS, run_count, used = 19, at;
    uint64_t dynamic, fixed, stored;

    counts->litlen[END] = 1;
    huffman(counts->litlen, LITLENS, CODE_BITS, codes->litlen_bits);
    huffman(counts->dist, DISTS, CODE_BITS, codes->dist_bits);
    while (litlens > 257 && !codes->litlen_bits[litlens - 1])
        litlens--;
    while (dists > 1 && !codes->dist_bits[dists - 1])
        dists--;
    memcpy(lengths, codes->litlen_bits, litlens);
    memcpy(lengths + litlens, codes->dist_bits, dists);
    run_count = runs_of(lengths, litlens + dists, runs);
    for (at = 0; at < run_count; at++)
        run_counts[runs[at] & 0xFF]++;
    huffman(run_counts, 19, 7, run_bits);
    while (used > 4 && !run_bits[run_order[used - 1]])
        used--;
    dynamic = 3 + 14 + 3 * used + data_bits(counts, codes->litlen_bits, codes->dist_bits);
    for (at = 0; at < 19; at++)
        dynamic += run_counts[at] * (run_bits[at] + (at > 15 ? run_extra[at - 16] : 0));
    memset(fixed_bits, 8, 144);
    memset(fixed_bits + 144, 9, 112);
    memset(fixed_bits + 256, 7, 24);
    memset(fixed_bits + 280, 8, 8);
    memset(fixed_dist, 5, DISTS);
    fixed = 3 + data_bits(counts, fixed_bits, fixed_dist);
    stored = 8 * (uint64_t)size + (3 + 7 + 32) * (1 + size / 65535);
    if ((dynamic < fixed ? dynamic < stored ? dynamic : stored : fixed < stored ? fixed : stored) / 8 + 16 > (size_t)(self->out_end - out->at))
        return 0;
    if (stored < dynamic && stored < fixed) {
        while (size) {
            size_t length = size < 65535 ? size : 65535;
            size -= length;
            put(out, is_last && !size, 3);
            if (out->count)
                put(out, 0, 8 - out->count);
            put(out, length | (length ^ 0xFFFF) << 16, 32);
            memcpy(out->at, data, length);
            out->at += length;
            data += length;
        }
        return 1;
    }
    if (fixed <= dynamic) {
        put(out, is_last | 1 << 1, 3);
        memcpy(codes->litlen_bits, fixed_bits, LITLENS + 2);
        memcpy(codes->dist_bits, fixed_dist, DISTS);
        assign(codes->litlen_bits, LITLENS + 2, codes->litlen);
    } else {
        put(out, is_last | 2 << 1 | (litlens - 257) << 3 | (dists - 1) << 8 | (used - 4) << 13, 17);
        for (at = 0; at < used; at++)
            put(out, run_bits[run_order[at]], 3);
        assign(run_bits, 19, run_codes);
        for (at = 0; at < run_count; at++) {
            unsigned symbol = runs[at] & 0xFF;
            put(out, run_codes[symbol] | (unsigned)(runs[at] >> 8) << run_bits[symbol],
                run_bits[symbol] + (symbol > 15 ? run_extra[symbol - 16] : 0));
        }
        assign(codes->litlen_bits, LITLENS, codes->litlen);
    }
    assign(codes->dist_bits, DISTS, codes->dist);
    put_items(self, codes, data, from, to);
    return 1;
}

/* About what a block of items takes, in UNITs of a bit, without what every way of cutting has in common. */
static uint64_t estimate(const struct deflater *self, const struct counts *counts)
{
    uint32_t all = sum(counts->litlen, LITLENS) + 1, dists = sum(counts->dist, DISTS);
    uint64_t total = (uint64_t)all * log2_of(self, all) + (dists ? (uint64_t)dists * log2_of(self, dists) : 0);
    unsigned used = 0;
    for (unsigned symbol = 0; symbol < LITLENS; symbol++)
        if (counts->litlen[symbol]) {
            total -= (uint64_t)counts->litlen[symbol] * log2_of(self, counts->litlen[symbol]);
            used++;
        }
    for (unsigned symbol = 0; symbol < DISTS; symbol++)
        if (counts->dist[symbol]) {
            total -= (uint64_t)counts->dist[symbol] * log2_of(self, counts->dist[symbol]);
            used++;
        }
    return total + (uint64_t)(60 + 3 * used) * UNIT;
}

/* Write the items of a segment as blocks. 0 where there is no room. */
static int put_segment(struct deflater *self, const uint8_t *data, size_t count, int is_last)
{
    size_t from = 0, at = 0;
    unsigned part = 0;

    while (from < count || part == 0) {
        struct counts block = self->parts[part], together;
        uint64_t cost = estimate(self, &block);
        size_t to, end;
        while (++part < PARTS && self->part_items[part - 1] < count) {
            uint64_t next = estimate(self, &self->parts[part]), both;
            together = block;
            add(&together, &self->parts[part]);
            both = estimate(self, &together);
            if (both > cost + next)
                break;
            block = together;
            cost = both;
        }
        to = self->part_items[part - 1];
        end = self->part_bytes[part - 1];
        if (!put_block(self, data + at, end - at, &block, from, to, is_last && to >= count))
            return 0;
        from = to;
        at = end;
    }
    return 1;
}

/* Compress `size` bytes into `out`, which has `room` bytes; how many they are, 0 where that is not enough.
 *
 * At most `depth` earlier places are looked at for a match; one of `nice` bytes is good enough, and after one of `lazy`
 * the next place is not looked at.
 */
static size_t deflate_raw(
    struct deflater *self, const uint8_t *data, size_t size, uint8_t *out, size_t room, unsigned depth, unsigned nice, unsigned lazy)
{
    size_t base = 0;

    if (!size || size > 1u << 30)
        return 0;
    if (depth > WINDOW)     /* no more places can have a match */
        depth = WINDOW;
    memset(self->head, 0, sizeof self->head);
    memset(self->head3, 0, sizeof self->head3);
    self->out = (struct bit_writer){out, 0, 0};
    self->out_end = out + room;
    while (base < size) {
        size_t end = size - base < SEGMENT ? size : base + SEGMENT;
        size_t count = parse(self, data, base, end, depth, nice, lazy);
        if (!put_segment(self, data + base, count, end == size))
            return 0;
        base = end;
    }
    if (self->out.count)
        put(&self->out, 0, 8 - self->out.count);
    return self->out.at - out;
}

#endif
