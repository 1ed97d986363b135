/* Every status of the header, each by a way that a caller may come to it. Prints the names of those that it reached.
 *
 * Usage: statuses BUNDLE MASKED BROKEN, of a model that has regions and no masks, one that has masks, and a folder with
 * a broken bundle for each status of bundles, by its name. FGCLIP_RT_ONNXRUNTIME is faulty.c.
 */
#define _POSIX_C_SOURCE 200809L
#include <stdint.h>
#include <sys/wait.h>
#include <unistd.h>

#include "check.h"

static fgclip_error error = FGCLIP_ERROR_INIT;
static const char *bundle, *masked, *broken;
static fgclip_model *model;
static fgclip_context *context;
static uint32_t dim;
static float *out;

static int32_t argument_invalid(void) {
    return fgclip_model_dim(NULL, &dim, &error);
}

static int32_t precision_missing(void) {
    fgclip_options options = FGCLIP_OPTIONS_INIT;
    fgclip_model *other;
    options.precision = "fp2";
    return fgclip_model_open(bundle, &options, &other, &error);
}

static int32_t graph_missing(void) {
    return fgclip_model_warm(model, FGCLIP_GRAPH_MASK, &error);
}

static int32_t walk_type_missing(void) {
    uint32_t count;
    return fgclip_model_token_count(model, "medium", &count, &error);
}

static int32_t embed_text(const char *text, size_t capacity) {
    return fgclip_embed_texts(context, &text, 1, NULL, out, capacity, &error);
}

static int32_t buffer_too_small(void) {
    return embed_text("a cat", dim - 1);
}

static int32_t image_unsupported(void) {
    fgclip_grid grid;
    return fgclip_model_grid(model, 0, 1, 0, &grid, &error);
}

/* Its memory is small, and the way to one column of patches is not. */
static int32_t image_too_large(void) {
    fgclip_image image = {NULL, 0, 1, (1u << 23) + 1, FGCLIP_FORMAT_GRAY, 0};
    uint8_t *data = calloc(image.height, 1);
    int32_t status;
    CHECK(data != NULL);
    image.data = data;
    status = fgclip_embed_images(context, &image, 1, NULL, out, dim, &error);
    free(data);
    CHECK(error.index == 0);
    return status;
}

static int32_t embed_box(double x1, double y1, double x2, double y2, int32_t format) {
    fgclip_region_request request = FGCLIP_REGION_REQUEST_INIT;
    fgclip_image image = picture(60, 40, 1);
    double box[4];
    int32_t status;
    box[0] = x1, box[1] = y1, box[2] = x2, box[3] = y2;
    request.box_format = format;
    status = fgclip_regions(context, &image, box, 1, &request, out, dim, &error);
    free((void *)image.data);
    CHECK(error.index == 0);
    return status;
}

static int32_t box_invalid(void) {
    return embed_box(0, 0, 1e300 * 1e300, 1, FGCLIP_BOX_XYXY);
}

static int32_t box_reversed(void) {
    return embed_box(20, 0, 10, 10, FGCLIP_BOX_XYXY);
}

static int32_t box_empty(void) {
    return embed_box(5, 5, 0, 10, FGCLIP_BOX_XYWH);
}

static int32_t box_outside(void) {
    return embed_box(60, 0, 70, 10, FGCLIP_BOX_XYXY);
}

static int32_t box_units(void) {
    return embed_box(0, 0, 30, 30, FGCLIP_BOX_NORMALIZED);
}

/* Embeds one mask of the size of its image but for `width`, whose numbers are all `value`. */
static int32_t embed_mask(uint32_t width, float value) {
    fgclip_mask_request request = FGCLIP_MASK_REQUEST_INIT;
    fgclip_image image = picture(60, 40, 1);
    fgclip_model *other;
    fgclip_context *own;
    size_t size = (size_t)width * image.height, at;
    float *values = malloc(size * sizeof *values);
    float *vector;
    uint32_t length;
    int32_t status;
    CHECK(values != NULL);
    for (at = 0; at < size; at++) {
        values[at] = value;
    }
    request.mask_width = width;
    request.mask_height = image.height;
    ANSWERS(FGCLIP_OK, fgclip_model_open(masked, NULL, &other, &error));
    ANSWERS(FGCLIP_OK, fgclip_model_dim(other, &length, &error));
    ANSWERS(FGCLIP_OK, fgclip_context_new(other, &own, &error));
    vector = malloc(length * sizeof *vector);
    CHECK(vector != NULL);
    status = fgclip_masks(own, &image, values, 1, &request, vector, length, &error);
    free(vector);
    free(values);
    free((void *)image.data);
    fgclip_context_free(own);
    fgclip_model_close(other);
    return status;
}

static int32_t mask_invalid(void) {
    return embed_mask(60, 1.5f);
}

static int32_t mask_misshaped(void) {
    return embed_mask(59, 1.0f);
}

static int32_t mask_empty(void) {
    return embed_mask(60, 0.0f);
}

static int32_t text_invalid(void) {
    return embed_text("\xed\xa0\x80", dim);
}

static int32_t text_too_long(void) {
    fgclip_options options = FGCLIP_OPTIONS_INIT;
    fgclip_model *other;
    const char *text = "a cat";
    int32_t ids[1024], status;
    options.max_text_bytes = 4;
    ANSWERS(FGCLIP_OK, fgclip_model_open(bundle, &options, &other, &error));
    status = fgclip_tokenize(other, &text, 1, NULL, ids, NULL, 1024, &error);
    fgclip_model_close(other);
    return status;
}

/* The path of the broken bundle of a status, in memory that the next call uses again. */
static const char *broken_bundle(int32_t status) {
    static char path[4096];
    int length = snprintf(path, sizeof path, "%s/%s", broken, fgclip_status_name(status));
    CHECK(length > 0 && (size_t)length < sizeof path);
    return path;
}

static int32_t open_broken(int32_t status) {
    fgclip_model *other;
    return fgclip_model_open(broken_bundle(status), NULL, &other, &error);
}

static int32_t bundle_missing(void) {
    return open_broken(FGCLIP_BUNDLE_MISSING);
}

static int32_t bundle_unreadable(void) {
    return open_broken(FGCLIP_BUNDLE_UNREADABLE);
}

static int32_t bundle_incomplete(void) {
    return open_broken(FGCLIP_BUNDLE_INCOMPLETE);
}

static int32_t bundle_altered(void) {
    return open_broken(FGCLIP_BUNDLE_ALTERED);
}

static int32_t bundle_newer(void) {
    return open_broken(FGCLIP_BUNDLE_NEWER);
}

static int32_t bundle_older(void) {
    return open_broken(FGCLIP_BUNDLE_OLDER);
}

static int32_t bundle_invalid(void) {
    return open_broken(FGCLIP_BUNDLE_INVALID);
}

/* It is sound when it is opened, and its manifest is longer when its first graph is. */
static int32_t bundle_replaced(void) {
    fgclip_model *other;
    char path[4200];
    FILE *manifest;
    int32_t status;
    ANSWERS(FGCLIP_OK, fgclip_model_open(broken_bundle(FGCLIP_BUNDLE_REPLACED), NULL, &other, &error));
    snprintf(path, sizeof path, "%s/manifest.json", broken_bundle(FGCLIP_BUNDLE_REPLACED));
    manifest = fopen(path, "a");
    CHECK(manifest != NULL && fputs("\n", manifest) >= 0 && fclose(manifest) == 0);
    status = fgclip_model_warm(other, FGCLIP_GRAPH_TEXT, &error);
    fgclip_model_close(other);
    return status;
}

/* Opens the bundle, and a graph, with an onnxruntime that fails as it is told. */
static int32_t with_fault(const char *fault, int32_t device) {
    fgclip_options options = FGCLIP_OPTIONS_INIT;
    fgclip_model *other;
    fgclip_context *own;
    const char *text = "a cat";
    int32_t status;
    CHECK(setenv("FGCLIP_RT_TEST_FAULT", fault, 1) == 0);
    options.device = device;
    status = fgclip_model_open(bundle, &options, &other, &error);
    if (status == 0) {
        status = fgclip_context_new(other, &own, &error);
        if (status == 0) {
            status = fgclip_embed_texts(own, &text, 1, NULL, out, dim, &error);
            fgclip_context_free(own);
        }
        fgclip_model_close(other);
    }
    CHECK(unsetenv("FGCLIP_RT_TEST_FAULT") == 0);
    return status;
}

static int32_t device_missing(void) {
    return with_fault("none", FGCLIP_DEVICE_CUDA);
}

static int32_t device_failed(void) {
    return with_fault("providers", FGCLIP_DEVICE_CUDA);
}

static int32_t precision_unsupported(void) {
    return with_fault("session 9 Could not find an implementation for MatMul", FGCLIP_DEVICE_CPU);
}

static int32_t out_of_memory(void) {
    return with_fault("run 6 Failed to allocate memory for requested buffer", FGCLIP_DEVICE_CPU);
}

/* Before any other bundle is opened, since a process keeps its libonnxruntime. */
static int32_t runtime_missing(void) {
    fgclip_options options = FGCLIP_OPTIONS_INIT;
    fgclip_model *other;
    options.onnxruntime = "no/such/libonnxruntime.so";
    return fgclip_model_open(bundle, &options, &other, &error);
}

static int32_t cancelled(void) {
    int32_t status;
    ANSWERS(FGCLIP_OK, fgclip_context_cancel(context, &error));
    status = embed_text("a cat", dim);
    CHECK(fgclip_context_reset(context, NULL) == 0);
    return status;
}

static int32_t forked(void) {
    int ends[2], state;
    pid_t child;
    CHECK(pipe(ends) == 0);
    child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        embed_text("a cat", dim);
        _exit(write(ends[1], &error, sizeof error) != (ssize_t)sizeof error);
    }
    CHECK(read(ends[0], &error, sizeof error) == (ssize_t)sizeof error);
    CHECK(waitpid(child, &state, 0) == child && WIFEXITED(state) && WEXITSTATUS(state) == 0);
    close(ends[0]);
    close(ends[1]);
    return error.status;
}

static int32_t internal(void) {
    return with_fault("run-options 1 It has no options", FGCLIP_DEVICE_CPU);
}

struct way {
    int32_t status;
    int32_t (*reach)(void);
};

static const struct way ways[] = {
    {FGCLIP_ARGUMENT_INVALID, argument_invalid},
    {FGCLIP_PRECISION_MISSING, precision_missing},
    {FGCLIP_GRAPH_MISSING, graph_missing},
    {FGCLIP_WALK_TYPE_MISSING, walk_type_missing},
    {FGCLIP_BUFFER_TOO_SMALL, buffer_too_small},
    {FGCLIP_IMAGE_UNSUPPORTED, image_unsupported},
    {FGCLIP_IMAGE_TOO_LARGE, image_too_large},
    {FGCLIP_BOX_INVALID, box_invalid},
    {FGCLIP_BOX_REVERSED, box_reversed},
    {FGCLIP_BOX_EMPTY, box_empty},
    {FGCLIP_BOX_OUTSIDE, box_outside},
    {FGCLIP_BOX_UNITS, box_units},
    {FGCLIP_MASK_INVALID, mask_invalid},
    {FGCLIP_MASK_MISSHAPED, mask_misshaped},
    {FGCLIP_MASK_EMPTY, mask_empty},
    {FGCLIP_TEXT_INVALID, text_invalid},
    {FGCLIP_TEXT_TOO_LONG, text_too_long},
    {FGCLIP_BUNDLE_MISSING, bundle_missing},
    {FGCLIP_BUNDLE_UNREADABLE, bundle_unreadable},
    {FGCLIP_BUNDLE_INCOMPLETE, bundle_incomplete},
    {FGCLIP_BUNDLE_ALTERED, bundle_altered},
    {FGCLIP_BUNDLE_NEWER, bundle_newer},
    {FGCLIP_BUNDLE_OLDER, bundle_older},
    {FGCLIP_BUNDLE_INVALID, bundle_invalid},
    {FGCLIP_BUNDLE_REPLACED, bundle_replaced},
    {FGCLIP_DEVICE_MISSING, device_missing},
    {FGCLIP_DEVICE_FAILED, device_failed},
    {FGCLIP_PRECISION_UNSUPPORTED, precision_unsupported},
    {FGCLIP_OUT_OF_MEMORY, out_of_memory},
    {FGCLIP_CANCELLED, cancelled},
    {FGCLIP_FORKED, forked},
    {FGCLIP_INTERNAL, internal},
};

static void check(int32_t status, int32_t (*reach)(void)) {
    size_t length;
    int32_t found = reach();
    if (found != status || error.status != status) {
        printf("%s was not reached, but %s: %s\n", fgclip_status_name(status), fgclip_status_name(found), error.message);
        exit(1);
    }
    length = strlen(error.message);
    CHECK(length > 0 && error.message[length - 1] == '.' && strchr(error.message, ';') != NULL);
    puts(fgclip_status_name(status));
}

int main(int argc, char **argv) {
    size_t at;
    CHECK(argc == 4);
    bundle = argv[1], masked = argv[2], broken = argv[3];
    check(FGCLIP_RUNTIME_MISSING, runtime_missing);
    ANSWERS(FGCLIP_OK, fgclip_model_open(bundle, NULL, &model, &error));
    ANSWERS(FGCLIP_OK, fgclip_context_new(model, &context, &error));
    ANSWERS(FGCLIP_OK, fgclip_model_dim(model, &dim, &error));
    out = malloc(dim * sizeof *out);
    CHECK(out != NULL);
    for (at = 0; at < sizeof ways / sizeof *ways; at++) {
        check(ways[at].status, ways[at].reach);
    }
    fgclip_context_free(context);
    fgclip_model_close(model);
    free(out);
    return 0;
}
