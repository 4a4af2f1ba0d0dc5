/*
 * libjpeg-turbo's functions, from a shared library that is opened when the kernel is loaded.
 *
 * Not linked: the library that is there when hagmil is built is often an old one, and a newer one lies in Pillow's own
 * wheel. Which are tried, hagmil/runtime/tiles/kernel.py says.
 */

#ifndef HAGMIL_LIBJPEG_H
#define HAGMIL_LIBJPEG_H

#include <dlfcn.h>
#include <setjmp.h>
#include <stddef.h>
#include <stdio.h>

#include <jpeglib.h>

#ifndef LIBJPEG_TURBO_VERSION
#error "hagmil's tile kernel needs libjpeg-turbo: pixels of other libjpegs differ, and they are several times slower"
#endif

/* The last two are libjpeg-turbo's own. */
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

/* Of the whole process: set once, under the interpreter's lock, before any thread decodes. */
static Libjpeg libjpeg;

/* ---- libjpeg's errors: its warnings are errors here, for a damaged tile is no tile ---- */

typedef struct {
    struct jpeg_error_mgr errors; /* first, so that libjpeg's pointer to it is a pointer to all of this */
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
    if (level < 0) /* a warning; the rest are traces */
        on_error(common);
}

static void say_nothing(j_common_ptr common)
{
    (void)common;
}

/* What libjpeg is given to report by: an error jumps to `failed`, which must be set, and leaves its message. */
static struct jpeg_error_mgr *report_to(const Libjpeg *library, Failure *failure)
{
    library->jpeg_std_error(&failure->errors);
    failure->errors.error_exit = on_error;
    failure->errors.emit_message = on_message;
    failure->errors.output_message = say_nothing;
    return &failure->errors;
}

/* ---- opening ---- */

/* Whether the library has the interface that this was compiled for; else 0 and a message. */
static int interface_fits(const Libjpeg *found, Failure *failure)
{
    struct jpeg_decompress_struct jpeg = {0};

    jpeg.err = report_to(found, failure);
    if (setjmp(failure->failed))
        return 0;
    found->jpeg_CreateDecompress(&jpeg, JPEG_LIB_VERSION, sizeof jpeg); /* it compares both */
    found->jpeg_destroy_decompress(&jpeg);
    return 1;
}

/* Take the functions of a shared library; 0, or -1 and a message, with those of before still there. */
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
        goto useless; \
    }
    EACH_FUNCTION(FIND)
#undef FIND
    if (!interface_fits(&found, &failure)) {
        snprintf(message, message_bytes, "%s: %s", path, failure.message);
        goto useless;
    }
    libjpeg = found; /* the library stays open */
    return 0;

useless:
    dlclose(library);
    return -1;
}

#endif
