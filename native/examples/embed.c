/* Embeds an image and texts, and prints how probable each text is.
 *
 * Usage: embed BUNDLE IMAGE.ppm TEXT...
 */
#include <fgclip_rt.h>
#include <stdio.h>
#include <stdlib.h>

#include "ppm.h"

/* Prints the first numbers of a vector. */
static void print_vector(const char *name, const float *vector, uint32_t dim) {
    uint32_t at;
    printf("%s:", name);
    for (at = 0; at < dim && at < 4; at++) {
        printf(" %.4f", vector[at]);
    }
    printf(" ... (%u floats)\n", (unsigned)dim);
}

/* Returns 0, or -1 with the sentence in `error`. */
static int embed(const fgclip_model *model, const fgclip_image *image, const char *const *texts, size_t count,
                 fgclip_error *error) {
    fgclip_context *context = NULL;
    float *vectors = NULL, *of_texts, *probabilities;
    uint32_t dim;
    size_t at;
    int result = -1;
    if (fgclip_model_dim(model, &dim, error) || fgclip_context_new(model, &context, error)) {
        goto end;
    }
    /* One allocation: the image's vector [dim], the texts' vectors [count, dim], and the probabilities [count]. */
    vectors = calloc(dim + count * dim + count, sizeof *vectors);
    if (vectors == NULL) {
        snprintf(error->message, sizeof error->message, "%zu vectors do not fit into memory; pass fewer texts.", count);
        goto end;
    }
    of_texts = vectors + dim;
    probabilities = of_texts + count * dim;
    if (fgclip_embed_images(context, image, 1, NULL, vectors, dim, error) ||
        fgclip_embed_texts(context, texts, count, NULL, of_texts, count * dim, error) ||
        fgclip_probabilities(model, vectors, 1, of_texts, count, probabilities, count, error)) {
        goto end;
    }
    print_vector("image", vectors, dim);
    for (at = 0; at < count; at++) {
        print_vector(texts[at], of_texts + at * dim, dim);
    }
    for (at = 0; at < count; at++) {
        printf("%.4f %s\n", probabilities[at], texts[at]);
    }
    result = 0;
end:
    free(vectors);
    fgclip_context_free(context);
    return result;
}

int main(int argc, char **argv) {
    fgclip_error error = FGCLIP_ERROR_INIT;
    fgclip_model *model = NULL;
    fgclip_image image;
    const char *fault;
    int result = 1;
    if (argc < 4) {
        fprintf(stderr, "usage: %s BUNDLE IMAGE.ppm TEXT...\n", argv[0]);
        return 2;
    }
    fault = ppm_read(argv[2], &image);
    if (fault != NULL) {
        fprintf(stderr, "%s %s\n", argv[2], fault);
        return 1;
    }
    if (fgclip_model_open(argv[1], NULL, &model, &error) ||
        embed(model, &image, (const char *const *)argv + 3, (size_t)argc - 3, &error)) {
        fprintf(stderr, "%s\n", error.message);
    } else {
        result = 0;
    }
    fgclip_model_close(model);
    ppm_free(&image);
    return result;
}
