/* Raw deflate (RFC 1951) with distances of at most 4 KiB: the only kind of stream that may be in a qcow2 image.
 *
 * Each cluster is compressed by itself. What a match is worth is told in bits: what its bytes would cost as literals,
 * by the frequencies seen so far, less what its length and its distance cost. Of the matches at a place the one that
 * is worth most is taken (the quick way: the longest), unless that at the next place is worth more. So short matches far
 * away, which cost more than they save, are left out. After many literals in a row not every place is looked at, until
 * a match is found. Where the statistics of the contents change, a new block begins (deflate_blocks.h).
 */

#ifndef QOBRA_DEFLATE_H
#define QOBRA_DEFLATE_H

#include "deflate_blocks.h"
#include "deflate_common.h"
#include "deflate_quick.h"

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

/* -- what things cost ------------------------------------------------------------------------------------------- */

static inline uint32_t symbol_cost(const struct deflater *self, uint32_t count, unsigned of, unsigned most)
{
    unsigned cost = count ? of - log2_of(self, count) : most;
    return cost < UNIT ? UNIT : cost > most ? most : cost;
}

/* Costs by what was seen of the segment so far, and what the bytes from `from` to `end` are worth. */
static void learn(struct deflater *self, const uint8_t *data, size_t from, size_t end)
{
    uint32_t all = sum(self->seen.litlen, LITLENS) + 1, dists = sum(self->seen.dist, DISTS), literals = 0;
    unsigned of = log2_of(self, all), of_dists = dists ? log2_of(self, dists) : 0, value;
    uint16_t worth = self->worth[from];
    uint64_t total = 0;
    int32_t costs[29];

    for (value = 0; value < 256; value++) {
        self->literal_cost[value] = symbol_cost(self, self->seen.litlen[value], of, 13 * UNIT);
        literals += self->seen.litlen[value];
        total += (uint64_t)self->seen.litlen[value] * self->literal_cost[value];
    }
    self->average_cost = literals ? total / literals : 8 * UNIT;
    for (value = 0; value < 29; value++)
        costs[value] = symbol_cost(self, self->seen.litlen[257 + value], of, 12 * UNIT) + length_extra[value] * UNIT;
    for (value = MIN_MATCH; value <= MAX_MATCH; value++)
        self->length_cost[value] = costs[self->length_slot[value]];
    for (value = 0; value < 24; value++)
        self->dist_cost[value] =
            (dists ? symbol_cost(self, self->seen.dist[value], of_dists, 8 * UNIT) : 9 * UNIT / 2) + dist_extra[value] * UNIT;
    self->least_cost = self->dist_cost[0];
    for (value = 1; value < 24; value++)
        if (self->dist_cost[value] < self->least_cost)
            self->least_cost = self->dist_cost[value];
    self->least_cost += self->length_cost[3];
    for (; from < end; from++)
        self->worth[from + 1] = worth += self->literal_cost[data[from]];
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

static inline unsigned hash4(uint32_t value)
{
    return value * 0x9E3779B1u >> (32 - HASH_BITS);
}

/* `place` is in the data, and at least four bytes are left there. */
static inline void insert(struct deflater *self, const uint8_t *data, uint32_t place)
{
    uint32_t value = load32(data + place);
    uint16_t *head = &self->head[hash4(value)];
    self->prev[place % WINDOW] = *head;
    *head = self->head3[hash3(value)] = place + WINDOW + 1;
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

/* Learn costs from the parts up to `part`. */
static void learn_parts(struct deflater *self, const uint8_t *data, unsigned part, uint32_t place, uint32_t end)
{
    memset(&self->seen, 0, sizeof self->seen);
    for (unsigned from = part > 4 ? part - 4 : 0; from <= part; from++)
        add(&self->seen, &self->parts[from]);
    learn(self, data, place, end);
}

/* How hard matches are looked for. */
struct effort {
    unsigned depth;         /* earlier places that are looked at; 0: the quick way */
    unsigned nice;          /* a match of so many bytes is good enough */
    unsigned lazy;          /* after one of so many the next place is not looked at */
};

/* The match at a place that is worth most, if it is worth more than `gain`; of one it is known that it has
 * `longest` bytes at least. */
static inline __attribute__((always_inline)) struct match match_at(
    struct deflater *self, const uint8_t *data, uint32_t base, uint32_t place, uint32_t end, int32_t gain, unsigned longest,
    struct effort effort)
{
    if (!effort.depth)
        return quick_find(self, data, place, end, gain);
    return find(self, data, place, self->worth + (place - base), limit_of(place, end), gain, longest, effort.depth, effort.nice);
}

/* A part ends `bytes` into the segment, with so many literals behind its last match. */
static struct item *end_part(struct deflater *self, struct item *item, unsigned part, uint32_t literals, uint32_t bytes)
{
    if (literals)
        *item++ = (struct item){literals, 0, 0};
    self->part_items[part] = item - self->items;
    self->part_bytes[part] = bytes;
    return item;
}

/* Turn a segment into items; how many they are. */
static inline __attribute__((always_inline)) size_t parse(
    struct deflater *self, const uint8_t *data, uint32_t base, uint32_t end, struct effort effort)
{
    const unsigned left = effort.depth ? 4 : QUICK_LEFT, misses = effort.depth ? MISSES : QUICK_MISSES;
    uint32_t place = base, stop, next, part = 0, next_part = base + PART, next_learn = base + LEARN;
    uint32_t literals = base;           /* where the literals since the last item begin */
    struct item *item = self->items;
    struct counts *counts = &self->parts[0];

    assume(self, data + base, end - base < LEARN + 2 * MAX_MATCH ? end - base : LEARN + 2 * MAX_MATCH);
    memset(self->parts, 0, sizeof self->parts);
    if (!effort.depth && !base && end >= left) {
        quick_insert(self, data, 0);
        counts->litlen[data[place++]]++;
    }
    while (end - place >= left) {
        struct match found;
        if (place >= next_part) {
            item = end_part(self, item, part++, place - literals, place - base);
            literals = place;
            while (next_part <= place)
                next_part += PART;
            if (place >= next_learn) {
                while (next_learn <= place)
                    next_learn += LEARN;
                stop = next_learn + 2 * MAX_MATCH < end ? next_learn + 2 * MAX_MATCH : end;
                learn_parts(self, data + base, part - 1, place - base, effort.depth ? stop - base : 0);
            }
            counts = &self->parts[part];
        }
        found = match_at(self, data, base, place, end, 0, MIN_MATCH, effort);
        if (!found.length) {
            uint32_t missed = place - literals;
            counts->litlen[data[place++]]++;
            if (missed >= misses) {
                missed = missed / misses < STRIDE ? missed / misses : STRIDE - 1;
                stop = end - place < missed ? end : place + missed;
                while (place < stop)
                    counts->litlen[data[place++]]++;
            }
            continue;
        }
        stop = place + 1;               /* places before are in the tables */
        while (found.length < effort.lazy && end - place > (found.length + 1 > left ? found.length + 1 : left)) {
            /* Is the match at the next place worth more? One as long may be, if it is nearer. */
            unsigned less = found.length > MIN_MATCH ? found.length - 1 : MIN_MATCH;
            struct match later = match_at(self, data, base, place + 1, end, found.gain, less, effort);
            stop = place + 2;
            if (!later.length)
                break;
            counts->litlen[data[place++]]++;
            found = later;
        }
        counts->litlen[257 + self->length_slot[found.length]]++;
        counts->dist[self->dist_slot[found.dist]]++;
        *item++ = (struct item){place - literals, found.length, found.dist};
        literals = place += found.length;
        next = place < end - left + 1 ? place : end - left + 1;
        for (; stop < next; stop++)
            if (effort.depth)
                insert(self, data, stop);
            else
                quick_insert(self, data, stop);
    }
    while (place < end)
        counts->litlen[data[place++]]++;
    for (item = end_part(self, item, part++, end - literals, end - base); part < PARTS; part++)
        item = end_part(self, item, part, 0, end - base);
    return item - self->items;
}

/* Compress `size` bytes into `out`, which has `room` bytes; how many they are, 0 where that is not enough. */
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
    memset(self->recent, 0, sizeof self->recent);
    self->out = (struct bit_writer){out, 0, 0};
    self->out_end = out + room;
    while (base < size) {
        size_t end = size - base < SEGMENT ? size : base + SEGMENT, count;
        if (depth)
            count = parse(self, data, base, end, (struct effort){depth, nice, lazy});
        else
            count = parse(self, data, base, end, (struct effort){0, QUICK_NICE, QUICK_LAZY});
        if (!put_segment(self, data + base, count, end == size))
            return 0;
        base = end;
    }
    if (self->out.count)
        put(&self->out, 0, 8 - self->out.count);
    return self->out.at - out;
}

#endif
