/* The C side of `make bench-native`.
 *
 * Usage: native start BUNDLE IMAGE          one vector, and the end
 *        native rate BUNDLE COUNT IMAGE...  the seconds that COUNT images take, of the given ones in turn
 *        native memory BUNDLE IMAGE         resident bytes once an image, its dense features and a text have run
 *
 * Images are PPM files (P6, 255).
 */
#include <fgclip_rt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static fgclip_error error = FGCLIP_ERROR_INIT;

static void fail(const char *message) {
    fprintf(stderr, "%s\n", message);
    exit(1);
}

static void check(int32_t status) {
    if (status != FGCLIP_OK) fail(error.message);
}

static void *allocated(size_t size) {
    void *memory = malloc(size);
    if (memory == NULL) fail("memory ran out");
    return memory;
}

static fgclip_image read_image(const char *path) {
    fgclip_image image = {NULL, 0, 0, 0, FGCLIP_FORMAT_RGB, 0};
    FILE *file = fopen(path, "rb");
    size_t size;
    uint8_t *data;
    if (file == NULL || fscanf(file, "P6 %u %u 255", &image.width, &image.height) != 2) fail(path);
    fgetc(file);
    size = (size_t)image.width * image.height * 3;
    data = allocated(size);
    if (fread(data, 1, size, file) != size) fail(path);
    fclose(file);
    image.data = data;
    return image;
}

static double seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

static unsigned long resident_bytes(void) {
    char line[256];
    unsigned long kilobytes = 0;
    FILE *file = fopen("/proc/self/status", "r");
    if (file == NULL) fail("/proc/self/status cannot be read");
    while (fgets(line, sizeof line, file) != NULL) {
        if (sscanf(line, "VmRSS: %lu", &kilobytes) == 1) break;
    }
    fclose(file);
    return kilobytes * 1024;
}

/* Waits for all vectors, so that the first ones, which open the graph, do not count. */
static void measure_rate(fgclip_context *context, uint32_t dim, size_t count, char **paths, size_t given) {
    fgclip_image *images = allocated(count * sizeof *images);
    float *out = allocated(count * dim * sizeof *out);
    size_t at;
    double start;
    for (at = 0; at < count; at++) images[at] = at < given ? read_image(paths[at]) : images[at - given];
    check(fgclip_embed_images(context, images, given < count ? given : count, NULL, out, count * dim, &error));
    start = seconds();
    check(fgclip_embed_images(context, images, count, NULL, out, count * dim, &error));
    printf("%.6f\n", seconds() - start);
}

static void measure_memory(const fgclip_model *model, fgclip_context *context, uint32_t dim, const char *path) {
    fgclip_image image = read_image(path);
    fgclip_grid grid;
    const char *text = "a cat";
    float *out;
    size_t size;
    check(fgclip_model_grid(model, image.width, image.height, 0, &grid, &error));
    size = (size_t)grid.rows * grid.columns * dim;
    out = allocated(size * sizeof *out);
    check(fgclip_embed_images(context, &image, 1, NULL, out, size, &error));
    check(fgclip_dense(context, &image, NULL, out, size, NULL, &error));
    check(fgclip_embed_texts(context, &text, 1, NULL, out, size, &error));
    printf("%lu\n", resident_bytes());
}

int main(int argc, char **argv) {
    fgclip_model *model;
    fgclip_context *context;
    uint32_t dim;
    if (argc < 4) fail("usage: native start|rate|memory BUNDLE ...");
    check(fgclip_model_open(argv[2], NULL, &model, &error));
    check(fgclip_context_new(model, &context, &error));
    check(fgclip_model_dim(model, &dim, &error));
    if (strcmp(argv[1], "memory") == 0) {
        measure_memory(model, context, dim, argv[3]);
    } else if (strcmp(argv[1], "rate") == 0 && argc > 4) {
        measure_rate(context, dim, strtoul(argv[3], NULL, 10), argv + 4, (size_t)argc - 4);
    } else {
        fgclip_image image = read_image(argv[3]);
        float *out = allocated(dim * sizeof *out);
        check(fgclip_embed_images(context, &image, 1, NULL, out, dim, &error));
    }
    return 0;
}
