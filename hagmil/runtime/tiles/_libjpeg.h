/*
 * The functions of libjpeg-turbo, from a shared library that is opened at run time.
 *
 * The library is not linked, because the one that is installed where hagmil is built is often old, and Pillow's wheel
 * contains a newer one. hagmil/runtime/tiles/kernel.py chooses the library.
 */

#ifndef HAGMIL_LIBJPEG_H
#define HAGMIL_LIBJPEG_H

#include <dlfcn.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdio.h>

#include <jpeglib.h>

#ifndef LIBJPEG_TURBO_VERSION
#error "hagmil's tile kernel needs libjpeg-turbo; other libjpegs give other pixels and are several times slower"
#endif

/* The last two exist in libjpeg-turbo only. */
#define EACH_FUNCTION(DO) \
    DO(jpeg_std_error) \
    DO(jpeg_CreateDecompress) \
    DO(jpeg_destroy_decompress) \
    DO(jpeg_mem_src) \
    DO(jpeg_read_header) \
    DO(jpeg_start_decompress) \
    DO(jpeg_read_scanlines) \
    DO(jpeg_finish_decompress) \
    DO(jpeg_abort_decompress) \
    DO(jpeg_crop_scanline) \
    DO(jpeg_skip_scanlines)

#define MEMBER_OF(name) __typeof__(&name) name;
typedef struct {
    EACH_FUNCTION(MEMBER_OF)
} Libjpeg;
#undef MEMBER_OF

/* Shared by the process; set once, while the GIL is held, before any thread decodes. */
static Libjpeg libjpeg;

/* ---- errors of libjpeg; warnings are treated as errors, because they mean that a tile is damaged ---- */

typedef struct {
    struct jpeg_error_mgr errors; /* first member, so that a pointer to it can be cast to Failure */
    jmp_buf failed;
    char message[JMSG_LENGTH_MAX];
} Failure;

static void on_error(j_common_ptr common)
{
    Failure *failure = (Failure *)common->err;
    failure->errors.format_message(common, failure->message);
    longjmp(failure->failed, 1);
}

static void on_message(j_common_ptr common, int level)
{
    if (level < 0) /* a warning; other levels are traces */
        on_error(common);
}

static void discard_message(j_common_ptr common)
{
    (void)common;
}

/* Set up error reporting: on an error, libjpeg jumps to `failed`, which must be set, and stores the message. */
static struct jpeg_error_mgr *report_to(const Libjpeg *library, Failure *failure)
{
    library->jpeg_std_error(&failure->errors);
    failure->errors.error_exit = on_error;
    failure->errors.emit_message = on_message;
    failure->errors.output_message = discard_message;
    return &failure->errors;
}

/* ---- opening ---- */

/* Return whether the library has the interface that this file was compiled for; else store a message. */
static int interface_fits(const Libjpeg *found, Failure *failure)
{
    struct jpeg_decompress_struct jpeg = {0};

    jpeg.err = report_to(found, failure);
    if (setjmp(failure->failed))
        return 0;
    found->jpeg_CreateDecompress(&jpeg, JPEG_LIB_VERSION, sizeof jpeg); /* compares version and struct size */
    found->jpeg_destroy_decompress(&jpeg);
    return 1;
}

/* Use the functions of a shared library. Return 0, or -1 and a message; then the previous functions remain in use. */
static int open_libjpeg(const char *path, char *message, size_t message_bytes)
{
    Libjpeg found;
    Failure failure;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);

    if (library == NULL) {
        snprintf(message, message_bytes, "%s", dlerror());
        return -1;
    }
#define FIND(name) \
    *(void **)&found.name = dlsym(library, #name); \
    if (found.name == NULL) { \
        snprintf(message, message_bytes, "%s has no " #name, path); \
        goto unsuitable; \
    }
    EACH_FUNCTION(FIND)
#undef FIND
    if (!interface_fits(&found, &failure)) {
        snprintf(message, message_bytes, "%s: %s", path, failure.message);
        goto unsuitable;
    }
    libjpeg = found; /* the library stays open */
    return 0;

unsuitable:
    dlclose(library);
    return -1;
}

#endif
