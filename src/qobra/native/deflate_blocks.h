/* The blocks of deflate: from items, which are literals and matches, to codes and bits. See deflate.h. */

#ifndef QOBRA_DEFLATE_BLOCKS_H
#define QOBRA_DEFLATE_BLOCKS_H

#include "deflate_common.h"

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
    uint32_t order[LITLENS + 2], sorted[LITLENS + 2], tree[LITLENS + 2], of_length[33] = {0}, most = 0;
    unsigned used = 0, symbol, at, leaf, root, next, shift;

    memset(lengths, 0, size);
    for (symbol = 0; symbol < size; symbol++) {
        order[used] = symbol;
        used += counts[symbol] != 0;
        most |= counts[symbol];
    }
    if (used <= 1) {
        /* A code has two symbols at least, for decoders that want it complete. */
        symbol = used ? order[0] : 0;
        lengths[symbol] = 1;
        lengths[symbol ? 0 : 1] = 1;
        return;
    }
    /* Sort, rarest first: by eight bits of the counts after the other, the lowest first. */
    for (shift = 0; most >> shift; shift += 8) {
        uint16_t place[257] = {0};
        for (at = 0; at < used; at++)
            place[(counts[order[at]] >> shift & 0xFF) + 1]++;
        for (at = 0; at < 256; at++)
            place[at + 1] += place[at];
        for (at = 0; at < used; at++)
            sorted[place[counts[order[at]] >> shift & 0xFF]++] = order[at];
        memcpy(order, sorted, used * sizeof *order);
    }
    /* Moffat and Katajainen, "In-Place Calculation of Minimum-Redundancy Codes". */
    for (at = 0; at < used; at++)
        tree[at] = counts[order[at]];
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
            lengths[order[at++]] = depth;
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

static inline unsigned bits_of(uint32_t whole)
{
    return whole >> WHOLE;
}

static inline void append_whole(struct bit_writer *out, uint32_t whole)
{
    append(out, whole & ((1u << WHOLE) - 1), bits_of(whole));
}

/* Two by two, so that they need not wait for each other. */
static inline void append_four(struct bit_writer *out, const uint32_t *whole, const uint8_t **data)
{
    uint32_t one = whole[(*data)[0]], two = whole[(*data)[1]], three = whole[(*data)[2]], four = whole[(*data)[3]];
    uint64_t low = (one & 0xFFFF) | (uint64_t)(two & 0xFFFF) << bits_of(one);
    uint64_t high = (three & 0xFFFF) | (uint64_t)(four & 0xFFFF) << bits_of(three);
    unsigned count = bits_of(one) + bits_of(two);

    append(out, low | high << count, count + bits_of(three) + bits_of(four));
    *data += 4;
}

/* Codes with the extra bits of each length behind them, so that a literal and a length are one step each. */
static void make_whole(struct deflater *self, const struct codes *codes)
{
    unsigned value, slot, extra;

    for (value = 0; value < 256; value++)
        self->whole_literal[value] = codes->litlen[value] | (uint32_t)codes->litlen_bits[value] << WHOLE;
    for (slot = 0; slot < 29; slot++) {
        unsigned code = codes->litlen[END + 1 + slot], bits = codes->litlen_bits[END + 1 + slot];
        for (extra = 0; extra < 1u << length_extra[slot] && length_base[slot] + extra <= MAX_MATCH; extra++)
            self->whole_length[length_base[slot] + extra] = code | extra << bits | (uint32_t)(bits + length_extra[slot]) << WHOLE;
    }
}

/* `data` is what the items stand for. */
static void put_items(struct deflater *self, const struct codes *codes, const uint8_t *data, size_t from, size_t to)
{
    struct bit_writer out = self->out;      /* in registers: what is written to bytes may be anything to a compiler */

    make_whole(self, codes);
    for (; from < to; from++) {
        struct item item = self->items[from];
        const uint8_t *end = data + item.literals;
        for (; end - data >= 4; flush(&out))
            append_four(&out, self->whole_literal, &data);
        while (data < end)
            append_whole(&out, self->whole_literal[*data++]);
        flush(&out);
        if (item.length) {
            unsigned slot = self->dist_slot[item.dist], bits = codes->dist_bits[slot];
            append_whole(&out, self->whole_length[item.length]);
            append(&out, codes->dist[slot] | (item.dist - dist_base[slot]) << bits, bits + dist_extra[slot]);
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

#endif
