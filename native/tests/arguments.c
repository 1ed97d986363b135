/* Bad arguments: every one is refused with its status, and nothing is written.
 *
 * Usage: arguments BUNDLE, of a model that has regions and no masks.
 */
#include "check.h"

static fgclip_error error = FGCLIP_ERROR_INIT;

static void test_library(void) {
    CHECK(fgclip_abi_version() == FGCLIP_ABI_VERSION);
    CHECK(strcmp(fgclip_status_name(FGCLIP_BUNDLE_MISSING), "bundle_missing") == 0);
    CHECK(strcmp(fgclip_status_name(12345), "unknown") == 0);
    CHECK(strchr(fgclip_version(), '.') != NULL);
    fgclip_model_close(NULL);
    fgclip_context_free(NULL);
}

static void test_open(const char *bundle) {
    fgclip_model *model = (fgclip_model *)&error;
    fgclip_options options = FGCLIP_OPTIONS_INIT;
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_model_open(NULL, NULL, &model, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_model_open(bundle, NULL, NULL, &error));
    ANSWERS(FGCLIP_BUNDLE_MISSING, fgclip_model_open("no/such/folder", NULL, &model, &error));
    CHECK(strstr(error.message, "no/such/folder does not exist") != NULL);
    CHECK(fgclip_model_open("no/such/folder", NULL, &model, NULL) == FGCLIP_BUNDLE_MISSING);
    options.precision = "fp2";
    ANSWERS(FGCLIP_PRECISION_MISSING, fgclip_model_open(bundle, &options, &model, &error));
    options.precision = "\xff";
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_model_open(bundle, &options, &model, &error));
    options.precision = NULL;
    options.threads = 1025;
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_model_open(bundle, &options, &model, &error));
    options.threads = 0;
    options.device = 4;
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_model_open(bundle, &options, &model, &error));
    options.device = 0;
    options.memory = 2;
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_model_open(bundle, &options, &model, &error));
    options.memory = 0;
    options.spinning = -1;
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_model_open(bundle, &options, &model, &error));
    options.spinning = 0;
    options.check = 2;
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_model_open(bundle, &options, &model, &error));
    options.check = 0;
    options.weights = 2;
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_model_open(bundle, &options, &model, &error));
    options.weights = 0;
    options.onnxruntime = "no/such/libonnxruntime.so";
    ANSWERS(FGCLIP_RUNTIME_MISSING, fgclip_model_open(bundle, &options, &model, &error));
    CHECK(strstr(error.message, "no/such/libonnxruntime.so: cannot open shared object file") != NULL);
    options.onnxruntime = NULL;
    options.struct_size = 0;
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_model_open(bundle, &options, &model, &error));
    CHECK(strstr(error.message, "FGCLIP_OPTIONS_INIT") != NULL);
    CHECK(model == (fgclip_model *)&error);
}

/* A struct of an earlier version is shorter; one of a later version is longer, and may set only what is known. */
static void test_struct_size(const char *bundle) {
    struct {
        fgclip_options known;
        uint64_t later;
    } options = {FGCLIP_OPTIONS_INIT, 0};
    fgclip_options earlier = FGCLIP_OPTIONS_INIT;
    fgclip_model *model;
    fgclip_error unset = {0, 7, 7, 7, "unset"};
    options.known.struct_size = (uint32_t)sizeof options;
    ANSWERS(FGCLIP_OK, fgclip_model_open(bundle, &options.known, &model, &error));
    fgclip_model_close(model);
    options.later = 1;
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_model_open(bundle, &options.known, &model, &error));
    earlier.struct_size = (uint32_t)offsetof(fgclip_options, device);
    earlier.device = 99;
    ANSWERS(FGCLIP_OK, fgclip_model_open(bundle, &earlier, &model, &error));
    fgclip_model_close(model);
    CHECK(fgclip_model_open("no/such/folder", NULL, &model, &unset) == FGCLIP_BUNDLE_MISSING);
    CHECK(unset.status == 7 && unset.index == 7 && strcmp(unset.message, "unset") == 0);
}

static void test_model(fgclip_model *model) {
    fgclip_context *context;
    fgclip_grid grid;
    const char *json = NULL;
    uint32_t number = 0;
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_model_dim(NULL, &number, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_model_dim(model, NULL, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_model_manifest(NULL, &json, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_model_manifest(model, NULL, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_model_runtime_info(NULL, &json, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_model_runtime_info(model, NULL, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_model_token_count(NULL, NULL, &number, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_model_token_count(model, NULL, NULL, &error));
    ANSWERS(FGCLIP_WALK_TYPE_MISSING, fgclip_model_token_count(model, "medium", &number, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_model_grid(NULL, 1, 1, 0, &grid, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_model_grid(model, 1, 1, 0, NULL, &error));
    ANSWERS(FGCLIP_IMAGE_UNSUPPORTED, fgclip_model_grid(model, 0, 1, 0, &grid, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_model_grid(model, 1, 1, 4000000000u, &grid, &error));
    ANSWERS(FGCLIP_IMAGE_TOO_LARGE, fgclip_model_grid(model, 2584, 4294967295u, 64, &grid, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_model_warm(NULL, 0, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_model_warm(model, 32, &error));
    ANSWERS(FGCLIP_GRAPH_MISSING, fgclip_model_warm(model, FGCLIP_GRAPH_TEXT | FGCLIP_GRAPH_MASK, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_context_new(NULL, &context, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_context_new(model, NULL, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_context_cancel(NULL, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_context_reset(NULL, &error));
    CHECK(number == 0 && json == NULL);
    ANSWERS(FGCLIP_OK, fgclip_model_token_count(model, NULL, &number, &error));
    CHECK(number > 0);
}

static void test_images(fgclip_context *context, uint32_t dim) {
    fgclip_image images[2], bad;
    fgclip_image_request request = FGCLIP_IMAGE_REQUEST_INIT;
    float *out = malloc(2 * dim * sizeof *out);
    CHECK(out != NULL);
    images[0] = picture(50, 40, 1);
    images[1] = picture(40, 50, 2);
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_embed_images(NULL, images, 2, NULL, out, 2 * dim, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_embed_images(context, NULL, 2, NULL, out, 2 * dim, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_embed_images(context, images, 2, NULL, NULL, 2 * dim, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_embed_images(context, images, SIZE_MAX, NULL, out, 2 * dim, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_embed_images(context, images, 2, NULL, out, SIZE_MAX, &error));
    out[0] = 7;
    ANSWERS(FGCLIP_BUFFER_TOO_SMALL, fgclip_embed_images(context, images, 2, NULL, out, 2 * dim - 1, &error));
    CHECK(error.needed == 2 * dim && out[0] == 7);
    ANSWERS(FGCLIP_BUFFER_TOO_SMALL, fgclip_embed_images(context, images, 2, NULL, NULL, 0, &error));
    ANSWERS(FGCLIP_OK, fgclip_embed_images(context, NULL, 0, NULL, NULL, 0, &error));
    request.features = 2;
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_embed_images(context, images, 2, &request, out, 2 * dim, &error));
    request.features = 0;
    request.max_num_patches = 100000;
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_embed_images(context, images, 2, &request, out, 2 * dim, &error));
    CHECK(error.index == 0);
    bad = images[1];
    images[1].format = 5;
    ANSWERS(FGCLIP_IMAGE_UNSUPPORTED, fgclip_embed_images(context, images, 2, NULL, out, 2 * dim, &error));
    CHECK(error.index == 1);
    images[1] = bad;
    images[1].stride = 119;
    ANSWERS(FGCLIP_IMAGE_UNSUPPORTED, fgclip_embed_images(context, images, 2, NULL, out, 2 * dim, &error));
    images[1] = bad;
    images[1].width = 0;
    ANSWERS(FGCLIP_IMAGE_UNSUPPORTED, fgclip_embed_images(context, images, 2, NULL, out, 2 * dim, &error));
    images[1] = bad;
    images[1].height = 0;
    ANSWERS(FGCLIP_IMAGE_UNSUPPORTED, fgclip_embed_images(context, images, 2, NULL, out, 2 * dim, &error));
    images[1] = bad;
    images[1].data = NULL;
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_embed_images(context, images, 2, NULL, out, 2 * dim, &error));
    images[1] = bad;
    images[1].reserved = 1;
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_embed_images(context, images, 2, NULL, out, 2 * dim, &error));
    images[1] = bad;
    ANSWERS(FGCLIP_OK, fgclip_embed_images(context, images, 2, NULL, out, 2 * dim, &error));
    free((void *)images[0].data);
    free((void *)images[1].data);
    free(out);
}

static void test_texts(fgclip_model *model, fgclip_context *context, uint32_t dim) {
    const char *texts[3] = {"a cat", "a dog", "\xed\xa0\x80"};
    size_t lengths[2] = {5, SIZE_MAX};
    fgclip_text_request request = FGCLIP_TEXT_REQUEST_INIT;
    uint32_t count;
    int32_t *ids;
    float *out = malloc(3 * dim * sizeof *out);
    uint8_t truncated[2] = {9, 9};
    CHECK(out != NULL);
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_embed_texts(NULL, texts, 2, NULL, out, 2 * dim, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_embed_texts(context, NULL, 2, NULL, out, 2 * dim, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_embed_texts(context, texts, 2, NULL, NULL, 2 * dim, &error));
    ANSWERS(FGCLIP_BUFFER_TOO_SMALL, fgclip_embed_texts(context, texts, 2, NULL, out, dim, &error));
    CHECK(error.needed == 2 * dim);
    ANSWERS(FGCLIP_TEXT_INVALID, fgclip_embed_texts(context, texts, 3, NULL, out, 3 * dim, &error));
    CHECK(error.index == 2);
    texts[1] = NULL;
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_embed_texts(context, texts, 2, NULL, out, 2 * dim, &error));
    CHECK(error.index == 1);
    texts[1] = "a dog";
    request.lengths = lengths;
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_embed_texts(context, texts, 2, &request, out, 2 * dim, &error));
    request.lengths = NULL;
    request.walk_type = "medium";
    ANSWERS(FGCLIP_WALK_TYPE_MISSING, fgclip_embed_texts(context, texts, 2, &request, out, 2 * dim, &error));
    request.walk_type = NULL;
    request.features = 3;
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_embed_texts(context, texts, 2, &request, out, 2 * dim, &error));
    request.features = 0;
    request.truncated = truncated;
    ANSWERS(FGCLIP_OK, fgclip_embed_texts(context, texts, 2, &request, out, 2 * dim, &error));
    CHECK(truncated[0] == 0 && truncated[1] == 0);
    ANSWERS(FGCLIP_OK, fgclip_embed_texts(context, NULL, 0, NULL, NULL, 0, &error));

    ANSWERS(FGCLIP_OK, fgclip_model_token_count(model, "short", &count, &error));
    ids = malloc(2 * count * sizeof *ids);
    CHECK(ids != NULL);
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_tokenize(NULL, texts, 2, NULL, ids, NULL, 2 * count, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_tokenize(model, texts, 2, NULL, NULL, NULL, 2 * count, &error));
    ANSWERS(FGCLIP_BUFFER_TOO_SMALL, fgclip_tokenize(model, texts, 2, NULL, ids, NULL, 2 * count - 1, &error));
    CHECK(error.needed == 2 * count);
    ANSWERS(FGCLIP_OK, fgclip_tokenize(model, texts, 2, NULL, ids, NULL, 2 * count, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_embed_tokens(context, NULL, NULL, 2, NULL, out, 2 * dim, &error));
    ANSWERS(FGCLIP_BUFFER_TOO_SMALL, fgclip_embed_tokens(context, ids, ids, 2, NULL, out, dim, &error));
    ANSWERS(FGCLIP_OK, fgclip_embed_tokens(context, ids, ids, 2, NULL, out, 2 * dim, &error));
    ids[0] = 2000000000;
    ANSWERS(FGCLIP_BUNDLE_INVALID, fgclip_embed_tokens(context, ids, ids, 2, NULL, out, 2 * dim, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_logits(NULL, out, 1, out, 1, out, 1, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_logits(model, NULL, 1, out, 1, out + dim, 1, &error));
    ANSWERS(FGCLIP_BUFFER_TOO_SMALL, fgclip_logits(model, out, 1, out, 2, out + 2 * dim, 1, &error));
    CHECK(error.needed == 2);
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_probabilities(model, out, 1, NULL, 1, out + dim, 1, &error));
    ANSWERS(FGCLIP_BUFFER_TOO_SMALL, fgclip_probabilities(model, out, 1, out, 1, NULL, 0, &error));
    ANSWERS(FGCLIP_OUT_OF_MEMORY, fgclip_logits(model, out, SIZE_MAX, out, 1, out + dim, 1, &error));
    free(ids);
    free(out);
}

static void test_regions(fgclip_model *model, fgclip_context *context, uint32_t dim) {
    fgclip_image image = picture(60, 40, 3);
    fgclip_region_request request = FGCLIP_REGION_REQUEST_INIT;
    fgclip_mask_request masks = FGCLIP_MASK_REQUEST_INIT;
    double boxes[8] = {0, 0, 30, 40, 10, 10, 20, 20};
    fgclip_grid grid;
    float *out, *dense;
    uint8_t *patches;
    ANSWERS(FGCLIP_OK, fgclip_model_grid(model, 60, 40, 0, &grid, &error));
    out = malloc(2 * dim * sizeof *out);
    dense = malloc((size_t)grid.rows * grid.columns * dim * sizeof *dense);
    patches = malloc(grid.bytes);
    CHECK(out != NULL && dense != NULL && patches != NULL);
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_regions(NULL, &image, boxes, 2, NULL, out, 2 * dim, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_regions(context, NULL, boxes, 2, NULL, out, 2 * dim, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_regions(context, &image, NULL, 2, NULL, out, 2 * dim, &error));
    ANSWERS(FGCLIP_BUFFER_TOO_SMALL, fgclip_regions(context, &image, boxes, 2, NULL, out, dim, &error));
    request.box_format = 3;
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_regions(context, &image, boxes, 2, &request, out, 2 * dim, &error));
    request.box_format = FGCLIP_BOX_XYXY;
    request.dense = out;
    request.dense_count = 1;
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_regions(context, &image, boxes, 2, &request, out, 2 * dim, &error));
    boxes[6] = 9;
    ANSWERS(FGCLIP_BOX_REVERSED, fgclip_regions(context, &image, boxes, 2, NULL, out, 2 * dim, &error));
    CHECK(error.index == 1);
    boxes[6] = 10;
    ANSWERS(FGCLIP_BOX_EMPTY, fgclip_regions(context, &image, boxes, 2, NULL, out, 2 * dim, &error));
    boxes[4] = 60;
    boxes[6] = 70;
    ANSWERS(FGCLIP_BOX_OUTSIDE, fgclip_regions(context, &image, boxes, 2, NULL, out, 2 * dim, &error));
    boxes[4] = 1e300;
    ANSWERS(FGCLIP_BOX_INVALID, fgclip_regions(context, &image, boxes, 2, NULL, out, 2 * dim, &error));
    boxes[4] = 0.1;
    boxes[6] = 0.5;
    request.dense = NULL;
    request.box_format = FGCLIP_BOX_NORMALIZED;
    ANSWERS(FGCLIP_BOX_UNITS, fgclip_regions(context, &image, boxes, 2, &request, out, 2 * dim, &error));
    CHECK(error.index == 0);

    ANSWERS(FGCLIP_GRAPH_MISSING, fgclip_masks(context, &image, boxes, 1, &masks, out, 2 * dim, &error));

    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_dense(context, NULL, NULL, out, dim, NULL, &error));
    ANSWERS(FGCLIP_BUFFER_TOO_SMALL, fgclip_dense(context, &image, NULL, out, dim, &grid, &error));
    CHECK(error.needed == (uint64_t)grid.rows * grid.columns * dim);
    ANSWERS(FGCLIP_OK, fgclip_dense(context, &image, NULL, dense, error.needed, NULL, &error));

    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_prepare_image(context, &image, NULL, NULL, 1, NULL, &error));
    ANSWERS(FGCLIP_BUFFER_TOO_SMALL, fgclip_prepare_image(context, &image, NULL, patches, 1, NULL, &error));
    CHECK(error.needed == grid.bytes);
    ANSWERS(FGCLIP_OK, fgclip_prepare_image(context, &image, NULL, patches, grid.bytes, NULL, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID,
            fgclip_embed_patches(context, patches, grid.bytes - 1, &grid, 1, NULL, out, dim, &error));
    ANSWERS(FGCLIP_BUFFER_TOO_SMALL,
            fgclip_embed_patches(context, patches, grid.bytes, &grid, 1, NULL, out, dim - 1, &error));
    ANSWERS(FGCLIP_OK, fgclip_embed_patches(context, patches, grid.bytes, &grid, 1, NULL, out, dim, &error));
    ANSWERS(FGCLIP_OK, fgclip_embed_patches(context, NULL, 0, NULL, 0, NULL, NULL, 0, &error));
    grid.rows = 0;
    ANSWERS(FGCLIP_ARGUMENT_INVALID,
            fgclip_embed_patches(context, patches, grid.bytes, &grid, 1, NULL, out, dim, &error));
    grid.rows = 4000000000u;
    grid.columns = 4000000000u;
    ANSWERS(FGCLIP_ARGUMENT_INVALID,
            fgclip_embed_patches(context, patches, grid.bytes, &grid, 1, NULL, out, dim, &error));
    free((void *)image.data);
    free(patches);
    free(dense);
    free(out);
}

/* Needs no model. */
static void test_resize(void) {
    fgclip_image image = picture(50, 40, 1);
    uint8_t out[2 * 3 * 8 * 8 * 3];
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_resize_to_patches(NULL, 2, 3, 8, 0, out, sizeof out, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_resize_to_patches(&image, 2, 3, 8, 0, NULL, sizeof out, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_resize_to_patches(&image, 2, 3, 8, 2, out, sizeof out, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_resize_to_patches(&image, 0, 3, 8, 0, out, sizeof out, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_resize_to_patches(&image, 2, 0, 8, 0, out, sizeof out, &error));
    ANSWERS(FGCLIP_ARGUMENT_INVALID, fgclip_resize_to_patches(&image, 2, 3, 0, 0, out, sizeof out, &error));
    ANSWERS(FGCLIP_OUT_OF_MEMORY,
            fgclip_resize_to_patches(&image, 4000000000u, 4000000000u, 8, 0, out, sizeof out, &error));
    ANSWERS(FGCLIP_BUFFER_TOO_SMALL, fgclip_resize_to_patches(&image, 2, 3, 8, 0, out, sizeof out - 1, &error));
    CHECK(error.needed == sizeof out);
    ANSWERS(FGCLIP_OK, fgclip_resize_to_patches(&image, 2, 3, 8, FGCLIP_FILTER_BICUBIC, out, sizeof out, &error));
    free((void *)image.data);
}

int main(int argc, char **argv) {
    fgclip_model *model;
    fgclip_context *context;
    uint32_t dim;
    CHECK(argc == 2);
    test_library();
    test_resize();
    test_open(argv[1]);
    test_struct_size(argv[1]);
    ANSWERS(FGCLIP_OK, fgclip_model_open(argv[1], NULL, &model, &error));
    ANSWERS(FGCLIP_OK, fgclip_model_dim(model, &dim, &error));
    test_model(model);
    ANSWERS(FGCLIP_OK, fgclip_context_new(model, &context, &error));
    test_images(context, dim);
    test_texts(model, context, dim);
    test_regions(model, context, dim);
    /* A context keeps its model alive. */
    fgclip_model_close(model);
    ANSWERS(FGCLIP_OK, fgclip_embed_texts(context, NULL, 0, NULL, NULL, 0, &error));
    fgclip_context_free(context);
    return 0;
}
