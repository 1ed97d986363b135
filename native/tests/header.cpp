/* Every function of fgclip_rt.hpp gives what its function of fgclip_rt.h gives, and throws what that refuses.
 *
 * Usage: header BUNDLE
 *        header masks BUNDLE    where the bundle has a graph of masks
 */
#include <cstring>
#include <fgclip_rt.hpp>

#include "check.h"

/* Ends the test unless an expression throws this status; the error is `thrown` in `then`. */
#define THROWS(expected, expression, then)                                        \
    do {                                                                          \
        bool threw = false;                                                       \
        try {                                                                     \
            expression;                                                           \
        } catch (const fgclip::error &thrown) {                                   \
            threw = true;                                                         \
            CHECK(thrown.status() == (expected));                                 \
            CHECK(std::strcmp(thrown.name(), fgclip_status_name(expected)) == 0); \
            CHECK(std::strlen(thrown.what()) > 0);                                \
            CHECK(then);                                                          \
        }                                                                         \
        CHECK(threw);                                                             \
    } while (0)

typedef std::vector<float> floats;

static_assert(std::is_nothrow_move_constructible<fgclip::model>::value, "handles move");
static_assert(std::is_nothrow_move_assignable<fgclip::context>::value, "handles move");
static_assert(!std::is_copy_constructible<fgclip::model>::value, "handles have one owner");
static_assert(!std::is_copy_constructible<fgclip::context>::value, "handles have one owner");
static_assert(!std::is_constructible<fgclip::texts, std::vector<std::string>>::value, "texts would dangle");
static_assert(std::is_constructible<fgclip::texts, const std::vector<std::string> &>::value, "texts of strings");
static_assert(!std::is_constructible<fgclip::span<float>, const floats &>::value, "a span does not drop const");
static_assert(std::is_convertible<fgclip::span<float>, fgclip::span<const float>>::value, "a span adds const");

static void models(const char *bundle, const fgclip::model &model) {
    fgclip_error error = FGCLIP_ERROR_INIT;
    fgclip_grid grid;
    uint32_t dim, count;
    const char *json;
    ANSWERS(FGCLIP_OK, fgclip_model_dim(model.get(), &dim, &error));
    CHECK(model.dim() == dim);
    ANSWERS(FGCLIP_OK, fgclip_model_manifest(model.get(), &json, &error));
    CHECK(model.manifest() == json);
    ANSWERS(FGCLIP_OK, fgclip_model_runtime_info(model.get(), &json, &error));
    CHECK(model.runtime_info() == json);
    ANSWERS(FGCLIP_OK, fgclip_model_token_count(model.get(), "long", &count, &error));
    CHECK(model.token_count("long") == count);
    ANSWERS(FGCLIP_OK, fgclip_model_grid(model.get(), 640, 480, 256, &grid, &error));
    CHECK(std::memcmp(&grid, &static_cast<const fgclip_grid &>(model.grid(640, 480, 256)), sizeof grid) == 0);
    model.warm(FGCLIP_GRAPH_TEXT);

    THROWS(FGCLIP_BUNDLE_MISSING, fgclip::model("no bundle"), thrown.index() == -1 && thrown.needed() == 0);
    THROWS(FGCLIP_WALK_TYPE_MISSING, model.token_count("poem"), true);
    THROWS(FGCLIP_IMAGE_UNSUPPORTED, model.grid(0, 1), true);
    THROWS(FGCLIP_ARGUMENT_INVALID, model.warm(1u << 30), true);
    fgclip::options options;
    options.precision = "fp7";
    THROWS(FGCLIP_PRECISION_MISSING, fgclip::model(std::string(bundle), options), true);
}

static void images(const fgclip::model &model, fgclip::context &context) {
    fgclip_error error = FGCLIP_ERROR_INIT;
    const uint32_t dim = model.dim();
    const fgclip_image drawn[2] = {picture(300, 200, 1), picture(31, 500, 2)};
    const fgclip_image image = fgclip::make_image(drawn[0].data, 300, 200);
    floats expected(2 * dim), out(2 * dim);
    fgclip::image_request request;
    request.max_num_patches = 128;
    fgclip_image_request plain = FGCLIP_IMAGE_REQUEST_INIT;
    plain.max_num_patches = 128;

    ANSWERS(FGCLIP_OK,
            fgclip_embed_images(context.get(), drawn, 2, &plain, expected.data(), expected.size(), &error));
    context.embed_images(drawn, out, request);
    CHECK(out == expected);
    floats one(dim);
    context.embed_image(image, one, request);
    ANSWERS(FGCLIP_OK, fgclip_embed_images(context.get(), &image, 1, &plain, expected.data(), dim, &error));
    CHECK(std::equal(one.begin(), one.end(), expected.begin()));

    const fgclip_grid grid = model.grid(300, 200, 128);
    floats dense(std::size_t(grid.rows) * grid.columns * dim), dense_expected(dense.size());
    CHECK(context.dense(image, dense, request).rows == grid.rows);
    ANSWERS(FGCLIP_OK, fgclip_dense(context.get(), &image, &plain, dense_expected.data(), dense.size(), NULL, &error));
    CHECK(dense == dense_expected);

    const double boxes[2][4] = {{10, 10, 100, 100}, {0, 0, 300, 200}};
    fgclip::region_request in_boxes;
    in_boxes.max_num_patches = 128;
    context.regions(image, fgclip::span<const double>(boxes[0], 8), out, in_boxes);
    ANSWERS(FGCLIP_OK,
            fgclip_regions(context.get(), &image, boxes[0], 2, &in_boxes, expected.data(), 2 * dim, &error));
    CHECK(out == expected);
    const double reversed[8] = {10, 10, 100, 100, 100, 10, 10, 100};
    THROWS(FGCLIP_BOX_REVERSED, context.regions(image, reversed, out), thrown.index() == 1);
    THROWS(FGCLIP_ARGUMENT_INVALID, context.regions(image, fgclip::span<const double>(reversed, 6), out), true);

    /* The pocket model has no graph for masks; sizes are looked at first. */
    const std::vector<std::uint8_t> bytes(2 * 300 * 200, 1);
    const floats shares(bytes.size(), 1);
    THROWS(FGCLIP_GRAPH_MISSING, context.masks(image, bytes, 300, 200, out), true);
    THROWS(FGCLIP_GRAPH_MISSING, context.masks(image, shares, 300, 200, out), true);
    THROWS(FGCLIP_ARGUMENT_INVALID, context.masks(image, bytes, 300, 199, out), true);
    THROWS(FGCLIP_ARGUMENT_INVALID, context.masks(image, shares, 0, 200, out), true);

    std::vector<std::uint8_t> patches(grid.bytes), patches_expected(grid.bytes);
    CHECK(context.prepare_image(image, patches, request).bytes == grid.bytes);
    ANSWERS(FGCLIP_OK, fgclip_prepare_image(context.get(), &image, &plain, patches_expected.data(), patches.size(),
                                            NULL, &error));
    CHECK(patches == patches_expected);
    floats of_patches(dim);
    context.embed_patches(patches, fgclip::span<const fgclip_grid>(&grid, 1), of_patches);
    CHECK(of_patches == one);

    const floats whole(out);
    THROWS(FGCLIP_BUFFER_TOO_SMALL, context.embed_images(drawn, one), thrown.needed() == 2 * dim);
    const fgclip_image bad[2] = {drawn[0], fgclip::make_image(drawn[1].data, 31, 500, FGCLIP_FORMAT_RGB, 7)};
    THROWS(FGCLIP_IMAGE_UNSUPPORTED, context.embed_images(bad, out), thrown.index() == 1);
    context.embed_images(fgclip::span<const fgclip_image>(), fgclip::span<float>());
    std::free(const_cast<std::uint8_t *>(drawn[0].data));
    std::free(const_cast<std::uint8_t *>(drawn[1].data));
}

static void strings(const fgclip::model &model, fgclip::context &context) {
    fgclip_error error = FGCLIP_ERROR_INIT;
    const uint32_t dim = model.dim(), length = model.token_count();
    const std::vector<std::string> list = {"a cat", std::string("a\0cat", 5), ""};
    const char *pointers[3] = {list[0].data(), list[1].data(), list[2].data()};
    const std::size_t lengths[3] = {5, 5, 0};
    fgclip_text_request plain = FGCLIP_TEXT_REQUEST_INIT;
    plain.lengths = lengths;
    floats expected(3 * dim), out(3 * dim);
    ANSWERS(FGCLIP_OK, fgclip_embed_texts(context.get(), pointers, 3, &plain, expected.data(), 3 * dim, &error));
    fgclip::texts texts(list);
    context.embed_texts(texts, out);
    CHECK(texts.size() == 3 && out == expected);
    texts.clear();
    texts.push_back("a cat");
    texts.push_back(list[1]);
    texts.push_back(nullptr, 0);
    std::fill(out.begin(), out.end(), 0.0f);
    context.embed_texts(texts, out);
    CHECK(out == expected);
    for (std::size_t at = 0; at < 3; at++) {
        floats one(dim), alone(dim);
        fgclip_text_request of_one = plain;
        of_one.lengths = &lengths[at];
        context.embed_text(list[at], one);
        ANSWERS(FGCLIP_OK, fgclip_embed_texts(context.get(), &pointers[at], 1, &of_one, alone.data(), dim, &error));
        CHECK(one == alone);
    }
    floats two(2 * dim), also(2 * dim);
    context.embed_texts({"a cat", "a dog"}, two);
    const char *const plainly[2] = {"a cat", "a dog"};
    ANSWERS(FGCLIP_OK, fgclip_embed_texts(context.get(), plainly, 2, NULL, also.data(), also.size(), &error));
    CHECK(two == also);

    std::uint8_t truncated[2] = {9, 9};
    const std::string endless(10000, 'x');
    fgclip::text_request request;
    request.truncated = truncated;
    fgclip::texts both{"short"};
    both.push_back(endless);
    context.embed_texts(both, two, request);
    CHECK(truncated[0] == 0 && truncated[1] == 1);
    THROWS(FGCLIP_TEXT_INVALID, context.embed_texts({"a", "\xff"}, two), thrown.index() == 1);

    std::vector<std::int32_t> ids(3 * length), mask(3 * length), ids_expected(3 * length), mask_expected(3 * length);
    model.tokenize(texts, ids, mask);
    ANSWERS(FGCLIP_OK, fgclip_tokenize(model.get(), pointers, 3, &plain, ids_expected.data(), mask_expected.data(),
                                       ids.size(), &error));
    CHECK(ids == ids_expected && mask == mask_expected);
    context.embed_tokens(model, ids, mask, out);
    ANSWERS(FGCLIP_OK, fgclip_embed_tokens(context.get(), ids.data(), mask.data(), 3, NULL, expected.data(),
                                           expected.size(), &error));
    CHECK(out == expected);
    std::fill(ids.begin(), ids.end(), -1);
    model.tokenize(texts, ids);
    CHECK(ids == ids_expected);
    mask.pop_back();
    THROWS(FGCLIP_ARGUMENT_INVALID, model.tokenize(texts, ids, mask), true);
    THROWS(FGCLIP_ARGUMENT_INVALID, context.embed_tokens(model, ids, mask, out), true);
    ids.pop_back();
    THROWS(FGCLIP_ARGUMENT_INVALID, context.embed_tokens(model, ids, mask, out), true);
    THROWS(FGCLIP_BUFFER_TOO_SMALL, model.tokenize(texts, ids), thrown.needed() == 3 * length);
}

static void scores(const fgclip::model &model) {
    fgclip_error error = FGCLIP_ERROR_INIT;
    const uint32_t dim = model.dim();
    floats images(2 * dim), texts(3 * dim), out(6), expected(6);
    for (std::size_t at = 0; at < texts.size(); at++) {
        texts[at] = float(at % 7) - 3;
        images[at % images.size()] = float(at % 11) - 5;
    }
    model.logits(images, texts, out);
    ANSWERS(FGCLIP_OK, fgclip_logits(model.get(), images.data(), 2, texts.data(), 3, expected.data(), 6, &error));
    CHECK(out == expected);
    model.probabilities(images, texts, out);
    ANSWERS(FGCLIP_OK,
            fgclip_probabilities(model.get(), images.data(), 2, texts.data(), 3, expected.data(), 6, &error));
    CHECK(out == expected);
    images.pop_back();
    THROWS(FGCLIP_ARGUMENT_INVALID, model.logits(images, texts, out), true);
}

static void owners(const char *bundle) {
    fgclip::model model(bundle);
    const fgclip_model *handle = model.get();
    fgclip::model moved(std::move(model));
    CHECK(moved.get() == handle && model.get() == nullptr);
    THROWS(FGCLIP_ARGUMENT_INVALID, fgclip::context{model}, true);
    fgclip::context context(moved);
    floats vector(moved.dim());
    context.cancel();
    THROWS(FGCLIP_CANCELLED, context.embed_text("a cat", vector), true);
    context.reset();
    moved = fgclip::model(bundle); /* closes the first, which its context keeps */
    context.embed_text("a cat", vector);
    context = fgclip::context(moved);
    context.embed_text("a cat", vector);
}

static void masks(const char *bundle) {
    fgclip_error error = FGCLIP_ERROR_INIT;
    const fgclip::model model(bundle);
    fgclip::context context(model);
    const fgclip_image image = picture(40, 30, 1);
    const std::size_t size = 40 * 30;
    floats shares(2 * size, 0.25f), out(2 * model.dim()), expected(out.size());
    std::vector<std::uint8_t> bytes(2 * size, 1);
    fgclip_mask_request request = FGCLIP_MASK_REQUEST_INIT;
    request.mask_width = 40;
    request.mask_height = 30;
    std::fill(shares.begin(), shares.begin() + 300, 1.0f);
    std::fill(bytes.begin(), bytes.begin() + 700, std::uint8_t(0));

    context.masks(image, shares, 40, 30, out);
    ANSWERS(FGCLIP_OK, fgclip_masks(context.get(), &image, shares.data(), 2, &request, expected.data(),
                                    expected.size(), &error));
    CHECK(out == expected);
    request.mask_type = FGCLIP_MASK_BOOL;
    context.masks(image, bytes, 40, 30, out);
    ANSWERS(FGCLIP_OK, fgclip_masks(context.get(), &image, bytes.data(), 2, &request, expected.data(),
                                    expected.size(), &error));
    CHECK(out == expected);
    std::fill(bytes.begin() + size, bytes.end(), std::uint8_t(0));
    THROWS(FGCLIP_MASK_EMPTY, context.masks(image, bytes, 40, 30, out), thrown.index() == 1);
    std::free(const_cast<std::uint8_t *>(image.data));
}

int main(int argc, char **argv) {
    fgclip::set_log(nullptr);
    if (argc == 3) {
        masks(argv[2]);
        return 0;
    }
    CHECK(argc == 2);
    const fgclip::model model(argv[1]);
    fgclip::context context(model);
    models(argv[1], model);
    images(model, context);
    strings(model, context);
    scores(model);
    owners(argv[1]);
    return 0;
}
