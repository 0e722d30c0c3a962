"""Words that several loops without the GIL change, read and written atomically and in one order for all threads."""

from libc.stdint cimport int64_t, uint8_t, uint64_t

cdef extern from * nogil:
    """
    #include <stdint.h>
    #define qobra_peek(pointer) __atomic_load_n((pointer), __ATOMIC_SEQ_CST)
    #define qobra_put(pointer, value) __atomic_store_n((pointer), (value), __ATOMIC_SEQ_CST)
    #define qobra_swap(pointer, value) __atomic_exchange_n((pointer), (value), __ATOMIC_SEQ_CST)
    #define qobra_or(pointer, value) __atomic_fetch_or((pointer), (value), __ATOMIC_SEQ_CST)
    #define qobra_and(pointer, value) __atomic_fetch_and((pointer), (value), __ATOMIC_SEQ_CST)
    static inline int qobra_install(uint64_t **place, uint64_t *page) {
        uint64_t *none = 0;
        return __atomic_compare_exchange_n(place, &none, page, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    }
    """
    int64_t peek "qobra_peek"(int64_t *)
    void put "qobra_put"(int64_t *, int64_t)
    int64_t swap "qobra_swap"(int64_t *, int64_t)
    uint64_t peek_word "qobra_peek"(uint64_t *)
    uint64_t swap_word "qobra_swap"(uint64_t *, uint64_t)
    uint64_t or_word "qobra_or"(uint64_t *, uint64_t)
    uint64_t and_word "qobra_and"(uint64_t *, uint64_t)
    uint8_t peek_byte "qobra_peek"(uint8_t *)
    void put_byte "qobra_put"(uint8_t *, uint8_t)
    uint8_t swap_byte "qobra_swap"(uint8_t *, uint8_t)
    uint64_t *peek_page "qobra_peek"(uint64_t **)
    bint install_page "qobra_install"(uint64_t **, uint64_t *)
