/* Embeds a JPEG file, decoded by the system's libjpeg-turbo, and prints how probable each text is.
 *
 * Usage: jpeg BUNDLE PHOTO.jpg TEXT...
 *
 * libfgclip_rt has no decoder, because a service has one, with its own limits and its sandbox. Pixels are those of the
 * Python package, with its exif_transpose=True, if three things are as here: libjpeg's default transform, the turn that
 * EXIF asks for, and a file that ends early is refused instead of filled with gray.
 */
#include <fgclip_rt.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h> /* jpeglib.h needs it */
#include <stdlib.h>
#include <string.h>

#include <jpeglib.h>

/* More pixels are refused before memory is asked for, because a file of a kilobyte can claim 65,535 × 65,535. */
#define MAX_PIXELS 100000000u

struct decoder {
    struct jpeg_error_mgr errors; /* first, so that libjpeg's pointer to it leads here */
    jmp_buf failed;
    char *fault;
    size_t fault_size;
};

static void fail(j_common_ptr info) {
    struct decoder *decoder = (struct decoder *)info->err;
    char message[JMSG_LENGTH_MAX];
    info->err->format_message(info, message);
    snprintf(decoder->fault, decoder->fault_size, "the JPEG file cannot be read (%s); write it again.", message);
    longjmp(decoder->failed, 1);
}

/* libjpeg warns of a damaged file (level -1) and goes on with gray. */
static void refuse_damage(j_common_ptr info, int level) {
    if (level < 0) {
        fail(info);
    }
}

static unsigned read_number(const uint8_t *data, unsigned bytes, int little_endian) {
    unsigned number = 0, at;
    for (at = 0; at < bytes; at++) {
        number |= (unsigned)data[at] << 8 * (little_endian ? at : bytes - 1 - at);
    }
    return number;
}

/* The turn that a marker of EXIF asks for, 1 to 8; 1 means none. */
static unsigned exif_orientation(const uint8_t *data, size_t size) {
    unsigned first, count, at, value;
    int little_endian;
    if (size < 14 || memcmp(data, "Exif\0\0", 6) != 0) {
        return 1;
    }
    data += 6;
    size -= 6;
    little_endian = data[0] == 'I';
    first = read_number(data + 4, 4, little_endian);
    if (first > size - 2) {
        return 1;
    }
    count = read_number(data + first, 2, little_endian);
    for (at = 0; at < count && first + 2 + 12 * (size_t)(at + 1) <= size; at++) {
        const uint8_t *entry = data + first + 2 + 12 * (size_t)at;
        if (read_number(entry, 2, little_endian) == 0x0112) {
            value = read_number(entry + 8, 2, little_endian);
            return value >= 1 && value <= 8 ? value : 1;
        }
    }
    return 1;
}

/* Reads the pixels, without the turn. They are the caller's, after a failure too. */
static int decode(FILE *file, fgclip_image *image, uint8_t **pixels, unsigned *orientation, char *fault,
                  size_t fault_size) {
    struct jpeg_decompress_struct info;
    struct decoder decoder;
    jpeg_saved_marker_ptr marker;
    decoder.fault = fault;
    decoder.fault_size = fault_size;
    memset(&info, 0, sizeof info);
    info.err = jpeg_std_error(&decoder.errors);
    decoder.errors.error_exit = fail;
    decoder.errors.emit_message = refuse_damage;
    if (setjmp(decoder.failed)) {
        jpeg_destroy_decompress(&info);
        return -1;
    }
    jpeg_create_decompress(&info);
    jpeg_stdio_src(&info, file);
    jpeg_save_markers(&info, JPEG_APP0 + 1, 0xffff);
    jpeg_read_header(&info, TRUE);
    if (info.num_components != 1 && info.num_components != 3) {
        snprintf(fault, fault_size, "the JPEG file has %d channels; convert it to RGB.", info.num_components);
        longjmp(decoder.failed, 1);
    }
    if ((uint64_t)info.image_width * info.image_height > MAX_PIXELS) {
        snprintf(fault, fault_size, "the JPEG file has %u × %u pixels; make it smaller.", info.image_width,
                 info.image_height);
        longjmp(decoder.failed, 1);
    }
    *orientation = 1;
    for (marker = info.marker_list; marker != NULL; marker = marker->next) {
        if (*orientation == 1) {
            *orientation = exif_orientation(marker->data, marker->data_length);
        }
    }
    info.out_color_space = JCS_RGB;
    jpeg_start_decompress(&info);
    *pixels = malloc((size_t)info.output_width * info.output_height * 3);
    if (*pixels == NULL) {
        snprintf(fault, fault_size, "the JPEG file's pixels do not fit into memory; make it smaller.");
        longjmp(decoder.failed, 1);
    }
    while (info.output_scanline < info.output_height) {
        JSAMPROW row = *pixels + (size_t)info.output_scanline * info.output_width * 3;
        jpeg_read_scanlines(&info, &row, 1);
    }
    image->width = info.output_width;
    image->height = info.output_height;
    jpeg_finish_decompress(&info);
    jpeg_destroy_decompress(&info);
    return 0;
}

/* Turns pixels upright into memory of the same size. Turns 5 to 8 swap the sides. */
static void turn(const uint8_t *from, uint8_t *to, fgclip_image *image, unsigned orientation) {
    const uint32_t width = image->width, height = image->height;
    const int swaps = orientation >= 5;
    const int from_right = orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
    const int from_below = orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
    uint32_t x, y;
    image->width = swaps ? height : width;
    image->height = swaps ? width : height;
    for (y = 0; y < image->height; y++) {
        for (x = 0; x < image->width; x++, to += 3) {
            const uint32_t column = swaps ? y : x, row = swaps ? x : y;
            const size_t at = (size_t)(from_below ? height - 1 - row : row) * width +
                              (from_right ? width - 1 - column : column);
            memcpy(to, from + at * 3, 3);
        }
    }
}

/* Reads a file upright. Returns 0, or -1 with the sentence in `fault`. The caller frees image->data. */
static int read_jpeg(const char *path, fgclip_image *image, char *fault, size_t fault_size) {
    unsigned orientation = 1;
    uint8_t *pixels = NULL;
    int result = -1;
    FILE *file = fopen(path, "rb");
    memset(image, 0, sizeof *image); /* no stride, FGCLIP_FORMAT_RGB */
    if (file == NULL) {
        snprintf(fault, fault_size, "%s cannot be opened; check its path and permissions.", path);
        return -1;
    }
    if (decode(file, image, &pixels, &orientation, fault, fault_size) == 0) {
        result = 0;
        if (orientation != 1) {
            uint8_t *upright = malloc((size_t)image->width * image->height * 3);
            if (upright == NULL) {
                snprintf(fault, fault_size, "the JPEG file's pixels do not fit into memory; make it smaller.");
                result = -1;
            } else {
                turn(pixels, upright, image, orientation);
                free(pixels);
                pixels = upright;
            }
        }
    }
    fclose(file);
    if (result != 0) {
        free(pixels);
        return -1;
    }
    image->data = pixels;
    return 0;
}

/* Prints the probability of each text. Returns 0, or -1 with the sentence in `error`. */
static int rate(const fgclip_model *model, const fgclip_image *image, const char *const *texts, size_t count,
                fgclip_error *error) {
    fgclip_context *context = NULL;
    float *vectors = NULL, *probabilities;
    uint32_t dim;
    size_t at;
    int result = -1;
    if (fgclip_model_dim(model, &dim, error) || fgclip_context_new(model, &context, error)) {
        goto end;
    }
    /* The image's vector, the texts' vectors, and the probabilities. */
    vectors = calloc(dim + count * dim + count, sizeof *vectors);
    if (vectors == NULL) {
        snprintf(error->message, sizeof error->message, "%zu vectors do not fit into memory; pass fewer texts.", count);
        goto end;
    }
    probabilities = vectors + dim + count * dim;
    if (fgclip_embed_images(context, image, 1, NULL, vectors, dim, error) ||
        fgclip_embed_texts(context, texts, count, NULL, vectors + dim, count * dim, error) ||
        fgclip_probabilities(model, vectors, 1, vectors + dim, count, probabilities, count, error)) {
        goto end;
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
    int result = 1;
    if (argc < 4) {
        fprintf(stderr, "usage: %s BUNDLE PHOTO.jpg TEXT...\n", argv[0]);
        return 2;
    }
    if (read_jpeg(argv[2], &image, error.message, sizeof error.message) ||
        fgclip_model_open(argv[1], NULL, &model, &error) ||
        rate(model, &image, (const char *const *)argv + 3, (size_t)argc - 3, &error)) {
        fprintf(stderr, "%s\n", error.message);
    } else {
        result = 0;
    }
    fgclip_model_close(model);
    free((void *)image.data);
    return result;
}
