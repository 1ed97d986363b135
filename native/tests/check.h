/* What the C tests share: checks that say where they failed, and pictures. */
#ifndef CHECK_H
#define CHECK_H

#include <fgclip_rt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Ends the test if a condition does not hold. */
#define CHECK(condition)                                                            \
    do {                                                                            \
        if (!(condition)) {                                                         \
            printf("%s:%d: %s does not hold\n", __FILE__, __LINE__, #condition);    \
            exit(1);                                                                \
        }                                                                           \
    } while (0)

/* Ends the test if a call with `&error` as its last argument does not answer `expected`. */
#define ANSWERS(expected, call)                                                                       \
    do {                                                                                              \
        int32_t expected_ = (expected), status_ = (call);                                             \
        if (status_ != expected_ || error.status != expected_) {                                      \
            printf("%s:%d: %s answers %d %s (%s), not %s\n", __FILE__, __LINE__, #call, (int)status_, \
                   fgclip_status_name(status_), error.message, fgclip_status_name(expected_));        \
            exit(1);                                                                                  \
        }                                                                                             \
    } while (0)

/* An RGB picture of these sides; the caller frees its data. */
static inline fgclip_image picture(uint32_t width, uint32_t height, uint32_t seed) {
    fgclip_image image = {NULL, 0, 0, 0, FGCLIP_FORMAT_RGB, 0};
    size_t size = (size_t)width * height * 3, at;
    uint8_t *data = (uint8_t *)malloc(size);
    uint32_t state = seed * 2654435761u + 1;
    CHECK(data != NULL);
    for (at = 0; at < size; at++) {
        state = state * 1664525u + 1013904223u;
        data[at] = (uint8_t)(state >> 24);
    }
    image.data = data;
    image.width = width;
    image.height = height;
    return image;
}

#endif
