/* Reads PPM files, so that the examples need no decoder. A service has one: pass on the pixels that it gives. */
#ifndef PPM_H
#define PPM_H

#include <fgclip_rt.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/* The next number of a header, after white space and comments; 0 if there is none up to a million. */
static uint32_t ppm_number(FILE *file) {
    uint32_t number = 0;
    int byte = getc(file);
    while (byte == ' ' || byte == '\t' || byte == '\r' || byte == '\n' || byte == '#') {
        while (byte == '#' && (byte = getc(file)) != '\n' && byte != EOF) {
            byte = '#';
        }
        byte = getc(file);
    }
    for (; byte >= '0' && byte <= '9' && number <= 1000000; byte = getc(file)) {
        number = number * 10 + (uint32_t)(byte - '0');
    }
    return number <= 1000000 ? number : 0;
}

/* Reads a binary PPM with 8 bits a channel. Returns NULL, or a sentence's end that says what is wrong with the file.
 * The caller gives the pixels to ppm_free. */
static const char *ppm_read(const char *path, fgclip_image *image) {
    const char *fault = NULL;
    uint8_t *pixels = NULL;
    uint32_t width = 0, height = 0;
    uint64_t size = 0;
    FILE *file = fopen(path, "rb");
    if (file == NULL) {
        return "cannot be opened; check its path and permissions.";
    }
    if (getc(file) != 'P' || getc(file) != '6' || (width = ppm_number(file)) == 0 ||
        (height = ppm_number(file)) == 0 || ppm_number(file) != 255) {
        fault = "is no PPM with 8 bits a channel; convert it to one.";
    } else {
        size = (uint64_t)width * height * 3;
        pixels = size <= SIZE_MAX ? (uint8_t *)malloc((size_t)size) : NULL;
        if (pixels == NULL) {
            fault = "does not fit into memory; make it smaller.";
        } else if (fread(pixels, 1, (size_t)size, file) != size) {
            fault = "ends early; write it again.";
        }
    }
    fclose(file);
    if (fault != NULL) {
        free(pixels);
        return fault;
    }
    image->data = pixels;
    image->stride = 0;
    image->width = width;
    image->height = height;
    image->format = FGCLIP_FORMAT_RGB;
    image->reserved = 0;
    return NULL;
}

static void ppm_free(fgclip_image *image) {
    free((void *)image->data);
    image->data = NULL;
}

#endif
