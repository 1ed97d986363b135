/* fgclip_rt.h: FG-CLIP, FG-CLIP 2, FineCLIP and SigLIP 2 from C.
 *
 * The library reads a bundle, the folder that `fgclip-rt export` writes, and runs it through onnxruntime. Images,
 * regions, masks and texts become vectors that can be compared with each other. It is the bundle's second reader; its
 * patches and token ids equal those of the Python package bit for bit. Its vectors do too on a CPU, with the same
 * libonnxruntime, number of threads and batches.
 *
 *     fgclip_model *model;
 *     fgclip_context *context;
 *     fgclip_error error = FGCLIP_ERROR_INIT;
 *     if (fgclip_model_open("bundle", NULL, &model, &error)) { fprintf(stderr, "%s\n", error.message); exit(1); }
 *     if (fgclip_context_new(model, &context, &error)) { ... }
 *     const char *texts[] = {"a cat", "a dog"};
 *     fgclip_embed_texts(context, texts, 2, NULL, vectors, 2 * dim, &error);
 *
 * THREADS. A model is immutable: any number of threads may use it at once. A context belongs to one thread at a time;
 * make one for each thread, they are small. A second call on a context that is in use is refused. A parameter that is
 * `const` may be used by several calls at once. On a CPU, calls of several contexts run side by side; on a GPU they take
 * turns. Each graph has `threads` threads, which all contexts share.
 *
 * FORK. Open models after a fork. A child of a process that has opened one gets FGCLIP_FORKED from every call, because
 * onnxruntime's threads do not come along.
 *
 * EXIT. Threads may be in calls when the process ends: `exit` waits for the runs in progress, ten seconds at most. Calls
 * answer FGCLIP_CANCELLED from then on, and functions that free do nothing.
 *
 * MEMORY. All arrays are the caller's, are not kept after a call, and must not overlap. Nothing but handles is freed by
 * the caller, through fgclip_model_close and fgclip_context_free. A result is written at once, and only if the call
 * succeeds; after a failure its memory holds anything. Capacities count items (floats, ids, bytes), not bytes, unless
 * the items are bytes. A capacity that is too small is FGCLIP_BUFFER_TOO_SMALL, and `error.needed` is the one to pass.
 *
 * ERRORS. Most functions return a status: 0 for success, or one of the macros below. The last parameter receives a
 * sentence with the fault and its remedy. It may be NULL. Nothing is printed, and no call exits, aborts or raises a
 * signal on bad input. One thing is beyond our reach: whoever shortens a file of weights that is in use ends the
 * process, as with any mapped file. Replace a bundle by renaming its folder.
 *
 * STRUCTS that end in `_request` or `_options` begin with `struct_size`; begin them with their ..._INIT. Zero is every
 * field's default, and NULL instead of a pointer to such a struct means all defaults. Fields are only ever added at the
 * end, so programs and libraries of different minor versions fit each other. Functions are only ever added, too.
 *
 * DEPLOYMENT. libonnxruntime is opened, not linked, when the first model is: version 1.22 or any later one. It is looked
 * for in `options.onnxruntime`; in the environment variable FGCLIP_RT_ONNXRUNTIME; among the libraries that the process
 * has loaded already; beside this library; and by the loader's name, libonnxruntime.so.1. It is never closed.
 * Version 1.29 and later report their use to Microsoft, by threads and a database in the home folder. That is turned off:
 * the first call that opens a model sets the environment variable ORT_DISABLE_TELEMETRY to 1, unless it is set. Set it
 * beforehand if other threads may read the environment then.
 */
#ifndef FGCLIP_RT_H
#define FGCLIP_RT_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* Version of the functions and structs below. A library of another ABI version has another SONAME. */
#define FGCLIP_ABI_VERSION 1

/* ---- Statuses. The hundreds are groups. The names are the codes of the Python package's errors. ---- */

#define FGCLIP_OK 0

/* The call is wrong. */
#define FGCLIP_ARGUMENT_INVALID 100  /* An argument has a value that cannot be used; a needed pointer is NULL. */
#define FGCLIP_PRECISION_MISSING 101 /* The bundle has no graphs in this precision. */
#define FGCLIP_GRAPH_MISSING 102     /* The model lacks this graph, so it cannot answer this question. */
#define FGCLIP_WALK_TYPE_MISSING 103 /* The model has no such kind of text. */
#define FGCLIP_BUFFER_TOO_SMALL 104  /* The memory for the result is too small; `needed` says how much it takes. */

/* An input is wrong; `index` says which. */
#define FGCLIP_IMAGE_UNSUPPORTED 200 /* An image has a size, a stride or a format that cannot be read. */
#define FGCLIP_IMAGE_TOO_LARGE 201   /* An image has more pixels than the limit allows. */
#define FGCLIP_BOX_INVALID 300       /* A box is not four finite numbers. */
#define FGCLIP_BOX_REVERSED 301      /* A box's second corner lies left of or above its first. */
#define FGCLIP_BOX_EMPTY 302         /* A box has no width or no height. */
#define FGCLIP_BOX_OUTSIDE 303       /* A box has no part of its image inside. */
#define FGCLIP_BOX_UNITS 304         /* Boxes are in other units than the call says. */
#define FGCLIP_MASK_INVALID 400      /* A mask holds other values than 0 to 1. */
#define FGCLIP_MASK_MISSHAPED 401    /* A mask has neither the image's size nor its grid's. */
#define FGCLIP_MASK_EMPTY 402        /* A mask is zero everywhere. */
#define FGCLIP_TEXT_INVALID 500      /* A text is not UTF-8, or the tokenizer fails on it. */
#define FGCLIP_TEXT_TOO_LONG 501     /* A text is so long that its tokens cannot be told, or longer than the limit. */

/* The bundle is wrong. */
#define FGCLIP_BUNDLE_MISSING 600    /* There is no bundle at this path. */
#define FGCLIP_BUNDLE_UNREADABLE 601 /* A file of the bundle cannot be opened. */
#define FGCLIP_BUNDLE_INCOMPLETE 602 /* A file of the bundle is missing. */
#define FGCLIP_BUNDLE_ALTERED 603    /* A file of the bundle is not the one that was exported. */
#define FGCLIP_BUNDLE_NEWER 604      /* The bundle has a newer format than this version reads. */
#define FGCLIP_BUNDLE_OLDER 605      /* The bundle has a format that this version no longer reads. */
#define FGCLIP_BUNDLE_INVALID 606    /* The manifest, the graphs or the tokenizer are not as specified. */
#define FGCLIP_BUNDLE_REPLACED 607   /* The bundle was replaced, changed or removed after it was opened. */

/* The machine is wrong. */
#define FGCLIP_DEVICE_MISSING 700        /* The device, or the library that drives it, is not on this machine. */
#define FGCLIP_DEVICE_FAILED 701         /* The device is there and failed. */
#define FGCLIP_PRECISION_UNSUPPORTED 702 /* The device has no kernels for this precision. */
#define FGCLIP_OUT_OF_MEMORY 703         /* The memory of the device or the machine ran out. */
#define FGCLIP_RUNTIME_MISSING 704       /* There is no libonnxruntime, or only one that is too old. */

/* The call cannot go on. */
#define FGCLIP_CANCELLED 800 /* Another thread cancelled the call. */
#define FGCLIP_FORKED 801    /* The process was forked after a model was opened. */
#define FGCLIP_INTERNAL 802  /* A fault of this library; please report it. */

/* ---- Types ---- */

/* A bundle, ready to run. Shared by threads. */
typedef struct fgclip_model fgclip_model;

/* The memory of one thread's calls. */
typedef struct fgclip_context fgclip_context;

/* The outcome of a call. It is written by every call that takes it: after a success, `status` is 0. A struct whose
 * `struct_size` is not set is left alone. */
typedef struct fgclip_error {
    uint32_t struct_size;
    int32_t status;    /* what the call returned */
    int64_t index;     /* position in the call of the image, text, box or mask at fault; -1 if it is none */
    uint64_t needed;   /* with FGCLIP_BUFFER_TOO_SMALL, the capacity that the call needs; else 0 */
    char message[512]; /* the fault and its remedy in one sentence, UTF-8, ended by NUL, cut if it is longer */
} fgclip_error;

#define FGCLIP_ERROR_INIT {(uint32_t)sizeof(fgclip_error), 0, -1, 0, ""}

/* Where a model runs. */
#define FGCLIP_DEVICE_CPU 0
#define FGCLIP_DEVICE_AUTO 1     /* a GPU if onnxruntime has a CUDA provider and CUDA gives this process a GPU */
#define FGCLIP_DEVICE_CUDA 2     /* onnxruntime's CUDA provider; an error if it is not there */
#define FGCLIP_DEVICE_TENSORRT 3 /* onnxruntime's TensorRT provider, which runs the EP-context models that
                                    `fgclip-rt build --backend onnxruntime-tensorrt` put into the bundle and that fit
                                    this GPU; an error if it is not there */

/* What becomes of the memory of a run. */
#define FGCLIP_MEMORY_FAST 0  /* it is kept for the next run, unless the run was a very large one */
#define FGCLIP_MEMORY_SMALL 1 /* it is given back after each run, which costs a few percent of speed */

/* Whether the threads of a run may spin while they wait for each other. They never spin between runs. */
#define FGCLIP_SPINNING_IN_RUNS 0
#define FGCLIP_SPINNING_NEVER 1

/* How the files of a bundle are checked. */
#define FGCLIP_CHECK_HASHES 0 /* sizes and SHA-256: about a second for each 1.5 GB */
#define FGCLIP_CHECK_SIZES 1  /* sizes only, which trusts the disk */

/* Whether the graphs of a model share the weights that the CPU's kernels pack for themselves. In fp16 they never do. */
#define FGCLIP_WEIGHTS_SHARED 0
#define FGCLIP_WEIGHTS_SEPARATE 1

typedef struct fgclip_options {
    uint32_t struct_size;
    uint32_t threads;        /* CPU threads of one operator, the calling one included; 0 takes one for each core that
                                this process, or its container, may use */
    int32_t device;          /* FGCLIP_DEVICE_... */
    uint32_t device_number;  /* number of the GPU */
    int32_t memory;          /* FGCLIP_MEMORY_... */
    int32_t spinning;        /* FGCLIP_SPINNING_... */
    int32_t check;           /* FGCLIP_CHECK_... */
    int32_t weights;         /* FGCLIP_WEIGHTS_... */
    uint64_t max_text_bytes; /* longer texts are refused; 0 takes 64 MiB */
    const char *precision;   /* one of the bundle's, such as "int8"; NULL takes the first, fp32 */
    const char *onnxruntime; /* path of libonnxruntime; NULL looks for it */
} fgclip_options;

#define FGCLIP_OPTIONS_INIT {(uint32_t)sizeof(fgclip_options), 0, 0, 0, 0, 0, 0, 0, 0, NULL, NULL}

/* Bytes of a pixel, in their order. Alpha is dropped; gray becomes three equal channels. */
#define FGCLIP_FORMAT_RGB 0
#define FGCLIP_FORMAT_BGR 1
#define FGCLIP_FORMAT_RGBA 2
#define FGCLIP_FORMAT_BGRA 3
#define FGCLIP_FORMAT_GRAY 4

/* A decoded image: 8 bits a channel, the top row first. Turn it upright before, if its file's EXIF says so. */
typedef struct fgclip_image {
    const uint8_t *data;
    size_t stride;   /* bytes from one row to the next; 0 if there are none between rows */
    uint32_t width;  /* pixels */
    uint32_t height; /* pixels */
    int32_t format;  /* FGCLIP_FORMAT_... */
    uint32_t reserved;
} fgclip_image;

/* Where an image is resized to: rows · columns patches. */
typedef struct fgclip_grid {
    uint32_t rows;
    uint32_t columns;
    uint32_t bucket; /* the number of patches that it was allowed; images of one bucket run together */
    uint32_t reserved;
    uint64_t bytes; /* of its patches, as fgclip_prepare_image writes them */
} fgclip_grid;

typedef struct fgclip_image_request {
    uint32_t struct_size;
    uint32_t max_num_patches; /* patches that every image is resized to fill; 0 lets the model choose */
    uint32_t batch_size;      /* images in one run; 0 chooses by the number of patches */
    uint32_t features;        /* 1 gives the reference's own features; 0 brings vectors to length one */
} fgclip_image_request;

#define FGCLIP_IMAGE_REQUEST_INIT {(uint32_t)sizeof(fgclip_image_request), 0, 0, 0}

typedef struct fgclip_text_request {
    uint32_t struct_size;
    uint32_t features;      /* as above */
    const char *walk_type;  /* kind of the texts, such as "short", "long" or "box"; NULL means "short" */
    const size_t *lengths;  /* bytes of each text; NULL if each ends in NUL */
    uint8_t *truncated;     /* NULL, or memory for one byte per text: 1 if it was too long and lost its end, else 0 */
} fgclip_text_request;

#define FGCLIP_TEXT_REQUEST_INIT {(uint32_t)sizeof(fgclip_text_request), 0, NULL, NULL, NULL}

/* Meaning of a box's four numbers. */
#define FGCLIP_BOX_XYXY 0       /* x1, y1, x2, y2 in pixels */
#define FGCLIP_BOX_XYWH 1       /* x, y, width, height in pixels */
#define FGCLIP_BOX_NORMALIZED 2 /* x1, y1, x2, y2 in shares of the image, 0 to 1 */

typedef struct fgclip_region_request {
    uint32_t struct_size;
    uint32_t max_num_patches; /* as above */
    uint32_t features;        /* as above */
    int32_t box_format;       /* FGCLIP_BOX_... */
    const float *dense;       /* what fgclip_dense gave for this image with `features` and this max_num_patches; then the
                                 tower does not run again, and image.data is not read. NULL runs the tower */
    size_t dense_count;       /* number of its floats */
} fgclip_region_request;

#define FGCLIP_REGION_REQUEST_INIT {(uint32_t)sizeof(fgclip_region_request), 0, 0, 0, NULL, 0}

#define FGCLIP_MASK_FLOAT32 0 /* floats from 0 to 1 */
#define FGCLIP_MASK_BOOL 1    /* bytes, zero or not */

typedef struct fgclip_mask_request {
    uint32_t struct_size;
    uint32_t max_num_patches; /* as above */
    uint32_t features;        /* as above */
    int32_t mask_type;        /* FGCLIP_MASK_... */
    uint32_t mask_width;      /* of every mask: the image's size in pixels, or that of its grid of patches */
    uint32_t mask_height;
    const float *dense; /* as above */
    size_t dense_count;
} fgclip_mask_request;

#define FGCLIP_MASK_REQUEST_INIT {(uint32_t)sizeof(fgclip_mask_request), 0, 0, 0, 0, 0, NULL, 0}

/* Receives a message of onnxruntime. Any thread may call it, several at once; it must not call this library. */
typedef void (*fgclip_log_function)(void *user, int32_t severity, const char *message);

/* ---- The library ---- */

/* Its version, such as "0.1.0". */
const char *fgclip_version(void);

/* The FGCLIP_ABI_VERSION that it was built with. */
uint32_t fgclip_abi_version(void);

/* Name of a status, such as "bundle_missing": the code of the Python package's error. "unknown" if there is none. */
const char *fgclip_status_name(int32_t status);

/* Has onnxruntime's warnings and errors (severity 2, 3 or 4) passed to `log`, from the models that are opened
 * afterwards; NULL drops them, as at first. */
int32_t fgclip_set_log(fgclip_log_function log, void *user, fgclip_error *error);

/* ---- Models ---- */

/* Opens the bundle in a folder. Every file is checked. Graphs are opened when they are first used, so a service that
 * embeds only texts never loads the vision tower; fgclip_model_warm opens them now. */
int32_t fgclip_model_open(const char *bundle, const fgclip_options *options, fgclip_model **model,
                          fgclip_error *error);

/* Frees a model once its last context is freed. No call may be using this handle. NULL is nothing to close. */
void fgclip_model_close(fgclip_model *model);

/* D, the number of floats of every vector. */
int32_t fgclip_model_dim(const fgclip_model *model, uint32_t *dim, fgclip_error *error);

/* The text of the bundle's manifest.json. It is the model's, until that is closed. */
int32_t fgclip_model_manifest(const fgclip_model *model, const char **json, fgclip_error *error);

/* JSON that says which libonnxruntime, device and options run, and why. It is the model's, until that is closed. */
int32_t fgclip_model_runtime_info(const fgclip_model *model, const char **json, fgclip_error *error);

/* L, the number of token ids of a text of this kind; NULL means "short". */
int32_t fgclip_model_token_count(const fgclip_model *model, const char *walk_type, uint32_t *count,
                                 fgclip_error *error);

/* Where an image of these sides is resized to. */
int32_t fgclip_model_grid(const fgclip_model *model, uint32_t width, uint32_t height, uint32_t max_num_patches,
                          fgclip_grid *grid, fgclip_error *error);

#define FGCLIP_GRAPH_VISION 1u
#define FGCLIP_GRAPH_DENSE 2u
#define FGCLIP_GRAPH_TEXT 4u
#define FGCLIP_GRAPH_REGION 8u
#define FGCLIP_GRAPH_MASK 16u

/* Opens graphs now instead of at their first use: flags FGCLIP_GRAPH_... joined by |, or 0 for all that it has. */
int32_t fgclip_model_warm(const fgclip_model *model, uint32_t graphs, fgclip_error *error);

/* ---- Contexts ---- */

/* Makes a context, which keeps its model alive. */
int32_t fgclip_context_new(const fgclip_model *model, fgclip_context **context, fgclip_error *error);

/* Frees a context. No call may be using it. NULL is nothing to free. */
void fgclip_context_free(fgclip_context *context);

/* Ends the call that runs in a context, from another thread; it answers FGCLIP_CANCELLED soon. So does every later call
 * of the context, until fgclip_context_reset: a deadline that strikes between two calls is not lost. */
int32_t fgclip_context_cancel(const fgclip_context *context, fgclip_error *error);

/* Lets calls of a context begin again. */
int32_t fgclip_context_reset(fgclip_context *context, fgclip_error *error);

/* ---- Vectors ---- */

/* One vector per image, float [count, D]. Images of one bucket run together in the order of the call. */
int32_t fgclip_embed_images(fgclip_context *context, const fgclip_image *images, size_t count,
                            const fgclip_image_request *request, float *out, size_t capacity, fgclip_error *error);

/* One vector per text, float [count, D]. Texts are UTF-8; a text that is too long loses its end. Equal texts run once. */
int32_t fgclip_embed_texts(fgclip_context *context, const char *const *texts, size_t count,
                           const fgclip_text_request *request, float *out, size_t capacity, fgclip_error *error);

/* One vector per patch of an image, float [rows, columns, D], comparable with texts of walk type "box". `grid` may be
 * NULL; fgclip_model_grid gives it beforehand. */
int32_t fgclip_dense(fgclip_context *context, const fgclip_image *image, const fgclip_image_request *request,
                     float *out, size_t capacity, fgclip_grid *grid, fgclip_error *error);

/* One vector per box of an image, float [count, D], comparable with texts of walk type "box"; boxes are double
 * [count, 4]. A box may reach over the image's border. */
int32_t fgclip_regions(fgclip_context *context, const fgclip_image *image, const double *boxes, size_t count,
                       const fgclip_region_request *request, float *out, size_t capacity, fgclip_error *error);

/* One vector per mask of an image, float [count, D], comparable with texts of walk type "box"; masks are
 * [count, mask_height, mask_width]. */
int32_t fgclip_masks(fgclip_context *context, const fgclip_image *image, const void *masks, size_t count,
                     const fgclip_mask_request *request, float *out, size_t capacity, fgclip_error *error);

/* ---- Scores ---- */

/* exp(logit_scale) · cosine + logit_bias of every image's vector [image_count, D] with every text's [text_count, D],
 * float [image_count, text_count]. Vectors may have any length. */
int32_t fgclip_logits(const fgclip_model *model, const float *images, size_t image_count, const float *texts,
                      size_t text_count, float *out, size_t capacity, fgclip_error *error);

/* Probabilities of the logits: a sigmoid of each pair, or a softmax over the texts of each image, as the model was
 * trained. */
int32_t fgclip_probabilities(const fgclip_model *model, const float *images, size_t image_count, const float *texts,
                             size_t text_count, float *out, size_t capacity, fgclip_error *error);

/* ---- Preparation apart from the graphs, which may run elsewhere ---- */

/* Token ids of texts, int32 [count, L], and one for each real token in `mask`, of the same capacity; it may be NULL. */
int32_t fgclip_tokenize(const fgclip_model *model, const char *const *texts, size_t count,
                        const fgclip_text_request *request, int32_t *ids, int32_t *mask, size_t capacity,
                        fgclip_error *error);

/* One vector per tokenised text. They run together. `mask` may be NULL if the model takes none. */
int32_t fgclip_embed_tokens(fgclip_context *context, const int32_t *ids, const int32_t *mask, size_t count,
                            const fgclip_text_request *request, float *out, size_t capacity, fgclip_error *error);

/* Patches of an image, bytes [rows · columns, P · P · 3] in row order, each as (row, column, channel). `grid` may be
 * NULL; fgclip_model_grid gives it beforehand. */
int32_t fgclip_prepare_image(fgclip_context *context, const fgclip_image *image, const fgclip_image_request *request,
                             uint8_t *out, size_t capacity, fgclip_grid *grid, fgclip_error *error);

#define FGCLIP_FILTER_BILINEAR 0
#define FGCLIP_FILTER_BICUBIC 1

/* Patches of an image as fgclip_prepare_image writes them, of a grid that the caller has chosen: the image is resized to
 * rows · patch_size × columns · patch_size pixels by `filter`, FGCLIP_FILTER_.... It needs no model and no onnxruntime,
 * for programs that run the graphs themselves. Any number of threads may call it at once. */
int32_t fgclip_resize_to_patches(const fgclip_image *image, uint32_t rows, uint32_t columns, uint32_t patch_size,
                                 int32_t filter, uint8_t *out, size_t capacity, fgclip_error *error);

/* One vector per prepared image, whose patches lie one image behind another, `size` bytes in all. They run together. Of
 * a grid only rows and columns are read. */
int32_t fgclip_embed_patches(fgclip_context *context, const uint8_t *patches, size_t size, const fgclip_grid *grids,
                             size_t count, const fgclip_image_request *request, float *out, size_t capacity,
                             fgclip_error *error);

#ifdef __cplusplus
}
#endif

#endif
