/* Clusters that zstd compressed, read by the library that the system has; there need be none, nor its headers. */
#ifndef QOBRA_UNZSTD_H
#define QOBRA_UNZSTD_H

#include <dlfcn.h>
#include <stddef.h>

static struct {
    void *(*create)(void);
    size_t (*destroy)(void *);
    size_t (*frame_size)(const void *, size_t);
    size_t (*decompress)(void *, void *, size_t, const void *, size_t);
    unsigned (*is_error)(size_t);
} qobra_zstd;

/* Load the library. 0 where there is none. */
static int qobra_zstd_load(void)
{
    void *library = dlopen("libzstd.so.1", RTLD_NOW | RTLD_LOCAL);
    if (library == NULL)
        return 0;
    *(void **)&qobra_zstd.create = dlsym(library, "ZSTD_createDCtx");
    *(void **)&qobra_zstd.destroy = dlsym(library, "ZSTD_freeDCtx");
    *(void **)&qobra_zstd.frame_size = dlsym(library, "ZSTD_findFrameCompressedSize");
    *(void **)&qobra_zstd.decompress = dlsym(library, "ZSTD_decompressDCtx");
    *(void **)&qobra_zstd.is_error = dlsym(library, "ZSTD_isError");
    return qobra_zstd.create && qobra_zstd.destroy && qobra_zstd.frame_size && qobra_zstd.decompress && qobra_zstd.is_error;
}

static void *qobra_zstd_create(void)
{
    return qobra_zstd.create();
}

static void qobra_zstd_destroy(void *context)
{
    if (context != NULL)
        qobra_zstd.destroy(context);
}

/* Fill `into` with the `size` bytes of the frame that `data` begins with. 0 where they are not just so many. */
static int qobra_zstd_read(void *context, const void *data, size_t length, void *into, size_t size)
{
    size_t frame = qobra_zstd.frame_size(data, length);
    return !qobra_zstd.is_error(frame) && qobra_zstd.decompress(context, into, size, data, frame) == size;
}

#endif
