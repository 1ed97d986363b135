/* Threads that share one model: the same vectors as one thread gives, and memory that does not grow.
 *
 * Usage: threads BUNDLE THREADS CALLS; prints the resident memory in KiB after a tenth of the calls and at the end.
 */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>

#include "check.h"

enum { IMAGES = 5 };

static fgclip_image images[IMAGES];
static float *expected;
static fgclip_model *model;
static uint32_t dim;
static const char *const texts[IMAGES] = {"a cat", "two dogs", "一只黑猫", "a red car", ""};

struct worker {
    pthread_t thread;
    unsigned seed;
    size_t calls;
};

static void *work(void *given) {
    struct worker *worker = given;
    fgclip_error error = FGCLIP_ERROR_INIT;
    fgclip_context *context;
    float *out = malloc(dim * sizeof *out);
    size_t call;
    CHECK(out != NULL);
    ANSWERS(FGCLIP_OK, fgclip_context_new(model, &context, &error));
    for (call = 0; call < worker->calls; call++) {
        unsigned which = (unsigned)((call * 7 + worker->seed) % (2 * IMAGES));
        if (which < IMAGES) {
            ANSWERS(FGCLIP_OK, fgclip_embed_images(context, &images[which], 1, NULL, out, dim, &error));
        } else {
            ANSWERS(FGCLIP_OK, fgclip_embed_texts(context, &texts[which - IMAGES], 1, NULL, out, dim, &error));
        }
        CHECK(memcmp(out, expected + which * dim, dim * sizeof *out) == 0);
    }
    fgclip_context_free(context);
    free(out);
    return NULL;
}

static void run(unsigned count, size_t calls) {
    struct worker *workers = calloc(count, sizeof *workers);
    unsigned index;
    CHECK(workers != NULL);
    for (index = 0; index < count; index++) {
        workers[index].seed = index;
        workers[index].calls = calls / count;
        CHECK(pthread_create(&workers[index].thread, NULL, work, &workers[index]) == 0);
    }
    for (index = 0; index < count; index++) {
        CHECK(pthread_join(workers[index].thread, NULL) == 0);
    }
    free(workers);
}

static long resident(void) {
    FILE *file = fopen("/proc/self/status", "r");
    char line[256];
    long size = -1;
    CHECK(file != NULL);
    while (fgets(line, sizeof line, file) != NULL) {
        if (strncmp(line, "VmRSS:", 6) == 0) {
            size = strtol(line + 6, NULL, 10);
        }
    }
    fclose(file);
    return size;
}

int main(int argc, char **argv) {
    static const uint32_t sides[IMAGES][2] = {{64, 48}, {300, 200}, {1, 1}, {31, 500}, {200, 200}};
    fgclip_error error = FGCLIP_ERROR_INIT;
    fgclip_options options = FGCLIP_OPTIONS_INIT;
    fgclip_context *context;
    unsigned count, index;
    size_t calls;
    CHECK(argc == 4);
    count = (unsigned)strtoul(argv[2], NULL, 10);
    calls = strtoul(argv[3], NULL, 10);
    options.threads = 1;
    ANSWERS(FGCLIP_OK, fgclip_model_open(argv[1], &options, &model, &error));
    ANSWERS(FGCLIP_OK, fgclip_model_dim(model, &dim, &error));
    ANSWERS(FGCLIP_OK, fgclip_context_new(model, &context, &error));
    expected = malloc(2 * IMAGES * dim * sizeof *expected);
    CHECK(expected != NULL);
    for (index = 0; index < IMAGES; index++) {
        float *of_text = expected + (IMAGES + index) * dim;
        images[index] = picture(sides[index][0], sides[index][1], index);
        ANSWERS(FGCLIP_OK, fgclip_embed_images(context, &images[index], 1, NULL, expected + index * dim, dim, &error));
        ANSWERS(FGCLIP_OK, fgclip_embed_texts(context, &texts[index], 1, NULL, of_text, dim, &error));
    }
    fgclip_context_free(context);
    run(count, calls / 10);
    printf("%ld ", resident());
    run(count, calls - calls / 10);
    printf("%ld\n", resident());
    fgclip_model_close(model);
    for (index = 0; index < IMAGES; index++) {
        free((void *)images[index].data);
    }
    free(expected);
    return 0;
}
